"""The live view: plain lines in a file, a screen on a terminal, for four items and for a thousand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.plan.quantities import format_duration
from orchestrator.progress.live_view import SUMMARY_INTERVAL, LiveView, render_stage
from orchestrator.progress.stage_progress import ItemProgress, StageProgress
from workers.progress import Progress


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plain():
    """A view that writes to a file, and what it wrote."""
    console = Console(file=io.StringIO(), force_terminal=False, width=60)
    return LiveView(console), lambda: console.file.getvalue().splitlines()


@pytest.fixture
def terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=110, height=30, _environ={"TERM": "xterm"})
    return LiveView(console), lambda: console.file.getvalue()


def test_a_row_keeps_metrics_that_a_report_does_not_name():
    row = ItemProgress()
    row.update(Progress("training", 5, 10, {"train.loss": 0.5, "validation.accuracy": 0.8}, left=10.0))
    row.update(Progress("training", 6, 10, {"train.loss": 0.4}))
    assert (row.state, row.step, row.steps, row.expected_end) == ("training", 6, 10, None)
    assert row.metrics == {"train.loss": 0.4, "validation.accuracy": 0.8}


def test_into_a_file_go_whole_lines_when_something_is_worth_one(plain):
    view, lines = plain
    with view:
        view.start_stage("Stage 1: experts", "expert", {"trec": 300, "a-task-with-a-name-as-long-as-a-line-of-60": 300})
        for step in range(1, 101):
            measured = {"validation.accuracy": 0.75} if step % 50 == 0 else {}
            view.update("trec", Progress("training", step, 300, {"train.loss": 1 / step, **measured}, 9.0))
        view.set_state("trec", "registered", "v2", {"test.accuracy": 0.9123})
        view.set_state("other", "failed", "[red]DivergedError[/red]")
    assert lines() == [
        "Stage 1: experts: trec, a-task-with-a-name-as-long-as-a-line-of-60",
        "  trec: training, step 1/300, loss 1.000, 9 seconds left",
        "  trec: training, step 50/300, loss 0.020, val 0.750, 9 seconds left",
        "  trec: training, step 100/300, loss 0.010, val 0.750, 9 seconds left",
        "  trec: registered: v2, step 100/300, loss 0.010, test 0.912",
        "  other: failed: [red]DivergedError[/red]",
    ]


def test_a_stage_whose_items_come_later_is_a_title(plain):
    view, lines = plain
    with view:
        view.start_stage("Search: ranks and shapes for trec", "trial", {})
    assert lines() == ["Search: ranks and shapes for trec"]


def test_of_many_pieces_ends_get_a_line_and_evaluations_none(plain, monkeypatch):
    view, lines = plain
    with view:
        view.start_stage("Stage 1: experts", "expert", {f"t{i}": 30 for i in range(1000)})
        for i in range(500):
            view.set_state(f"t{i}", "cached")
        for step in range(1, 31):
            view.update("t500", Progress("training", step, 30, {"validation.accuracy": 0.5}, 1.0))
        view.set_state("t500", "retrying", "2nd attempt in 5 s: its process died")
        view.set_state("t501", "failed", "ValueError: no rows\nand more")
        view.last_summary -= SUMMARY_INTERVAL
        view.update("t502", Progress("training", 1, 30, {}, 10.0))
        view.update("t502", Progress("training", 2, 30, {}, 10.0))
    assert lines() == [
        "Stage 1: experts: 1000",
        "  t500: retrying: 2nd attempt in 5 s: its process died, step 30/30, val 0.500",
        "  t501: failed: ValueError: no rows",
        "501 of 1000: 500 cached, 1 running, 498 waiting, 1 failed, 1 retried; 0 seconds, "
        "about 1 hour and 23 minutes left",
        "501 of 1000: 500 cached, 1 running, 498 waiting, 1 failed, 1 retried; 0 seconds",
    ]


def test_a_terminal_keeps_each_stages_last_screen(terminal):
    view, text = terminal
    with view:
        view.start_stage("Stage 1: experts", "expert", {"trec": 300, "spam": 300})
        view.update("trec", Progress("training", 120, 300, {"train.loss": 0.25}, 60.0))
        view.set_state("spam", "cached")
        view.print("a word")
        view.start_stage("Stage 2: router", "router", {"router": 30})
        first = text()
        view.set_state("router", "done")
    assert first.count("Stage 1: experts") >= 1
    assert "1 of 2: 1 cached, 1 running" in first
    for part in ("trec", "training", "120/300", "0.250", "cached", "a word"):
        assert part in first
    last = text()
    assert "Stage 2: router" in last
    assert "1 of 1: 1 done" in last
    assert not view.stage.items


def test_brackets_and_control_characters_do_not_break_the_screen(terminal):
    view, text = terminal
    with view:
        view.start_stage("Stage", "task", {"x": 1})
        view.set_state("x", "failed", "expected [/Users] in [red]\x1b[2J\nsecond line")
    assert "[/Users]" in text()
    assert "second line" in text()  # at the end the whole message
    assert "\x1b[2J" not in text()


def test_the_view_ends_with_an_error_inside(terminal):
    view, _ = terminal
    with pytest.raises(ZeroDivisionError), view:
        1 / 0  # noqa: B018
    assert not view.live.is_started


def thousand(clock):
    stage = StageProgress({f"t{i:03}": 300 for i in range(1000)}, clock)
    for i in range(100, 164):
        stage.update(f"t{i}", Progress("training", i, 300, {"train.loss": 0.5}, 30.0))
    for i in range(5):
        stage.set_state(f"t90{i}", "failed", f"cause {i}", {})
    return stage


@pytest.mark.parametrize("height", [12, 24, 60])
def test_a_thousand_pieces_fit_the_terminal(clock, height):
    lines = render_stage("Stage 1", "expert", thousand(clock), 100, height).plain.splitlines()
    assert len(lines) <= max(height, 14)
    assert lines[1] == "5 of 1000: 64 running, 931 waiting, 5 failed"
    assert lines[-4:] == ["failed: 5, the last 3:", "  t902: cause 2", "  t903: cause 3", "  t904: cause 4"]
    shown = sum(line.startswith("  t1") for line in lines)
    assert f"… and {64 - shown} more running, 931 waiting" in "\n".join(lines).replace(" 0 more running,", "")


def test_a_long_note_loses_its_end_and_no_number(clock):
    stage = StageProgress({"x": 10}, clock)
    stage.update("x", Progress("training", 7, 10, {"train.loss": 0.123, "validation.accuracy": 0.9}))
    stage.set_state("x", "retrying", "3rd attempt in 20 s: " + "its node was lost " * 10, {})
    line = next(
        line for line in render_stage("S", "expert", stage, 80, 24).plain.splitlines() if line.startswith("  x")
    )
    assert len(line) <= 80
    assert "retrying: 3rd attempt" in line
    assert line.split("…")[1].split() == ["7/10", "0.123", "val", "0.900"]


def test_counts_follow_every_change_of_state(clock):
    stage = StageProgress({"a": 1, "b": 1, "c": 1, "d": 1}, clock)
    stage.set_state("a", "cached", "", {})
    stage.update("b", Progress("training", 1, 2))
    stage.set_state("b", "retrying", "2nd attempt", {})
    assert (stage.running, list(stage.active)) == (0, ["b"])
    stage.update("b", Progress("loading"))
    assert stage.items["b"].note == ""  # it was the retry's
    stage.update("c", Progress("training", 1, 2))
    stage.set_state("c", "stopped", "", {})
    stage.set_state("b", "registered", "v1", {})
    assert stage.summary() == "3 of 4: 1 done, 1 cached, 1 waiting, 1 stopped, 1 retried"
    assert not stage.active


def test_time_left_follows_finished_pieces_and_how_many_run(clock):
    stage = StageProgress({f"t{i}": 10 for i in range(10)}, clock)
    assert stage.seconds_left() is None
    stage.update("t0", Progress("training", 1, 10, left=30.0))
    stage.update("t1", Progress("training", 1, 10, left=30.0))
    assert stage.seconds_left() == (30 + 30 + 8 * 30) / 2  # nothing has finished: what they say themselves
    clock.now += 10
    stage.set_state("t0", "registered", "", {})
    stage.set_state("t1", "registered", "", {})
    stage.update("t2", Progress("training", 1, 10))
    stage.update("t3", Progress("training", 1, 10))
    clock.now += 4
    assert stage.seconds_left() == (6 + 6 + 6 * 10) / 2
    stage.update("t3", Progress("training", 2, 10, left=500.0))
    assert stage.seconds_left() == 500  # the last one to end is not hurried by the mean


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 seconds"),
        (0.4, "0 seconds"),
        (99.4, "99 seconds"),
        (100, "2 minutes"),
        (5900, "1 hour and 38 minutes"),
        (7500, "2 hours and 5 minutes"),
        (200_000, "2 days and 8 hours"),
    ],
)
def test_durations_as_text(seconds, text):
    assert format_duration(seconds) == text


def test_brackets_in_the_text_of_an_error_are_text(plain, terminal):
    for view, shown in ((plain[0], lambda: "\n".join(plain[1]())), terminal):
        with view:
            view.start_stage("Stage", "expert", {"[/a]": 1})
            view.print("ValueError: [/tmp] [red]")
            view.set_state("[/a]", "failed", "ValueError: [/b] is wrong")
        assert "ValueError: [/tmp] [red]" in shown()
        assert "ValueError: [/b] is wrong" in shown()
