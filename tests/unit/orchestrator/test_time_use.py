"""Where the seconds of stage 1 went: the run's parts, the experts' rows, and the line that sums them up."""

from __future__ import annotations

import pytest

from orchestrator.recording.registrar import Stage1Result
from orchestrator.report.time_use import ExpertTime, TimeUse
from workers.expert_result import ExpertResult
from workers.stopwatch import ACTIVITIES


def metrics(steps: float, **more: float) -> dict[str, float]:
    return {f"seconds.{name}": 1.0 for name in ACTIVITIES} | {"seconds.steps": steps, "seconds.job": 99.0} | more


def time_use(count: int = 2, **more: float) -> TimeUse:
    experts = tuple(ExpertTime.of(f"t{i}", metrics(10.0 + i), 0.5) for i in range(count))
    return TimeUse(experts, **({"busy": 40.0, "waiting": 10.0} | more))


def test_the_parts_are_all_the_time_of_the_workers() -> None:
    use = time_use()
    assert use.parts == {
        "loading": 2, "tokens": 2, "trunk": 2, "steps": 21, "evaluation": 2, "saving": 2, "other": 9, "waiting": 10,
    }  # fmt: skip
    assert use.total == 50
    assert sum(use.shares().values()) == pytest.approx(1)
    assert use.shares()["steps"] == 21 / 50


def test_seconds_of_an_earlier_attempt_do_not_make_the_rest_negative() -> None:
    assert time_use(busy=5.0).parts["other"] == 0


def test_the_line_names_the_largest_shares_first() -> None:
    assert time_use(waiting=0.1).describe() == (
        "Stage 1, 40 seconds of worker time: 52% steps, 22% other, 5% loading, 5% tokens, 5% trunk, 5% evaluation, "
        "5% saving."
    )
    assert TimeUse().describe() == ""


def test_an_expert_of_an_older_version_has_its_job_alone() -> None:
    assert ExpertTime.of("old", {"seconds.job": 7.0}, 0.0) == ExpertTime("old", 7.0, {}, 0.0)
    assert ExpertTime.of("older", {}, 0.0).total is None
    new = ExpertTime.of("new", metrics(4.0), 0.0)
    assert (new.total, new.parts["steps"], set(new.parts)) == (9.0, 4.0, set(ACTIVITIES))


def test_the_slowest_come_first_and_the_others_are_one_row() -> None:
    rows = time_use(400).slowest()
    assert [row.name for row in rows[:2]] == ["t399", "t398"]
    assert (len(rows), rows[-1].name) == (21, "the other 380")
    assert rows[-1].parts["loading"] == 380
    assert rows[-1].recording == 190
    assert rows[-1].total == sum(10 + i + 5 for i in range(380))
    assert len(time_use(21).slowest()) == 21


def test_stage_1_brings_what_was_measured() -> None:
    results = [ExpertResult(task, "ab", metrics(3.0), 10, "", "") for task in ("a", "b")]
    stage = Stage1Result(workers=2, results=results, busy_seconds=30.0, waiting_seconds=4.0)
    stage.recording_seconds |= {"a": 0.25, "": 0.5}  # a request for all experts has no task
    use = stage.usage.time
    assert [(each.name, each.recording) for each in use.experts] == [("a", 0.25), ("b", 0.0)]
    assert (use.busy, use.waiting, use.recording) == (30.0, 4.0, 0.75)
    stage.found.add("a")  # trained by an earlier run
    assert [each.name for each in stage.usage.time.experts] == ["b"]
