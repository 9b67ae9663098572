"""The live view: plain lines into a file, a screen on a terminal; four pieces of work or a thousand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.progress.live_screen import render_stage
from orchestrator.progress.live_view import TOTALS_INTERVAL, LiveView
from orchestrator.progress.stage_progress import ItemProgress, StageProgress, format_duration
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
    row.take(Progress("training", 5, 10, {"train.loss": 0.5, "validation.accuracy": 0.8}, left=10.0))
    row.take(Progress("training", 6, 10, {"train.loss": 0.4}))
    assert (row.state, row.step, row.steps, row.ends) == ("training", 6, 10, None)
    assert row.metrics == {"train.loss": 0.4, "validation.accuracy": 0.8}


def test_into_a_file_go_whole_lines_when_something_is_worth_one(plain):
    view, lines = plain
    with view:
        view.stage("Stage 1: experts", "expert", {"trec": 300, "a-task-with-a-name-as-long-as-a-line-of-60": 300})
        for step in range(1, 101):
            measured = {"validation.accuracy": 0.75} if step % 50 == 0 else {}
            view.progress("trec", Progress("training", step, 300, {"train.loss": 1 / step, **measured}, 9.0))
        view.state("trec", "registered", "v2", {"test.accuracy": 0.9123})
        view.state("other", "failed", "[red]DivergedError[/red]")
    assert lines() == [
        "Stage 1: experts: trec, a-task-with-a-name-as-long-as-a-line-of-60",
        "  trec: training, step 1/300, loss 1.000, 9 s left",
        "  trec: training, step 50/300, loss 0.020, val 0.750, 9 s left",
        "  trec: training, step 100/300, loss 0.010, val 0.750, 9 s left",
        "  trec: registered: v2, step 100/300, loss 0.010, test 0.912",
        "  other: failed: [red]DivergedError[/red]",
    ]


def test_of_many_pieces_ends_get_a_line_and_evaluations_none(plain, monkeypatch):
    view, lines = plain
    with view:
        view.stage("Stage 1: experts", "expert", {f"t{i}": 30 for i in range(1000)})
        for i in range(500):
            view.state(f"t{i}", "cached")
        for step in range(1, 31):
            view.progress("t500", Progress("training", step, 30, {"validation.accuracy": 0.5}, 1.0))
        view.state("t500", "retrying", "2nd attempt in 5 s: its process died")
        view.state("t501", "failed", "ValueError: no rows\nand more")
        view.said -= TOTALS_INTERVAL
        view.progress("t502", Progress("training", 1, 30, {}, 10.0))
        view.progress("t502", Progress("training", 2, 30, {}, 10.0))
    assert lines() == [
        "Stage 1: experts: 1000",
        "  t500: retrying: 2nd attempt in 5 s: its process died, step 30/30, val 0.500",
        "  t501: failed: ValueError: no rows",
        "501 of 1000: 500 cached, 1 running, 498 waiting, 1 failed, 1 retried; 0 s, about 83 min left",
        "501 of 1000: 500 cached, 1 running, 498 waiting, 1 failed, 1 retried; 0 s",
    ]


def test_a_terminal_keeps_each_stages_last_screen(terminal):
    view, text = terminal
    with view:
        view.stage("Stage 1: experts", "expert", {"trec": 300, "spam": 300})
        view.progress("trec", Progress("training", 120, 300, {"train.loss": 0.25}, 60.0))
        view.state("spam", "cached")
        view.say("a word")
        view.stage("Stage 2: router", "router", {"router": 30})
        first = text()
        view.state("router", "done")
    assert first.count("Stage 1: experts") >= 1
    assert "1 of 2: 1 cached, 1 running" in first
    for part in ("trec", "training", "120/300", "0.250", "cached", "a word"):
        assert part in first
    last = text()
    assert "Stage 2: router" in last
    assert "1 of 1: 1 done" in last
    assert not view.tally.rows


def test_brackets_and_control_characters_do_not_break_the_screen(terminal):
    view, text = terminal
    with view:
        view.stage("Stage", "task", {"x": 1})
        view.state("x", "failed", "expected [/Users] in [red]\x1b[2J\nsecond line")
    assert "[/Users]" in text()
    assert "second line" in text()  # at the end the whole message
    assert "\x1b[2J" not in text()


def test_the_view_ends_with_an_error_inside(terminal):
    view, _ = terminal
    with pytest.raises(ZeroDivisionError), view:
        1 / 0  # noqa: B018
    assert not view.live.is_started


def thousand(clock):
    tally = StageProgress({f"t{i:03}": 300 for i in range(1000)}, clock)
    for i in range(100, 164):
        tally.progress(f"t{i}", Progress("training", i, 300, {"train.loss": 0.5}, 30.0))
    for i in range(5):
        tally.state(f"t90{i}", "failed", f"cause {i}", {})
    return tally


@pytest.mark.parametrize("height", [12, 24, 60])
def test_a_thousand_pieces_fit_the_terminal(clock, height):
    lines = render_stage("Stage 1", "expert", thousand(clock), 100, height).plain.splitlines()
    assert len(lines) <= max(height, 14)
    assert lines[1] == "5 of 1000: 64 running, 931 waiting, 5 failed"
    assert lines[-4:] == ["failed: 5, the last 3:", "  t902: cause 2", "  t903: cause 3", "  t904: cause 4"]
    shown = sum(line.startswith("  t1") for line in lines)
    assert f"… and {64 - shown} more under way, 931 waiting" in "\n".join(lines).replace(" 0 more under way,", "")


def test_a_long_note_loses_its_end_and_no_number(clock):
    tally = StageProgress({"x": 10}, clock)
    tally.progress("x", Progress("training", 7, 10, {"train.loss": 0.123, "validation.accuracy": 0.9}))
    tally.state("x", "retrying", "3rd attempt in 20 s: " + "its node was lost " * 10, {})
    line = next(
        line for line in render_stage("S", "expert", tally, 80, 24).plain.splitlines() if line.startswith("  x")
    )
    assert len(line) <= 80
    assert "retrying: 3rd attempt" in line
    assert line.split("…")[1].split() == ["7/10", "0.123", "val", "0.900"]


def test_counts_follow_every_change_of_state(clock):
    tally = StageProgress({"a": 1, "b": 1, "c": 1, "d": 1}, clock)
    tally.state("a", "cached", "", {})
    tally.progress("b", Progress("training", 1, 2))
    tally.state("b", "retrying", "2nd attempt", {})
    assert (tally.running, list(tally.active)) == (0, ["b"])
    tally.progress("b", Progress("loading"))
    assert tally.rows["b"].note == ""  # it was the retry's
    tally.progress("c", Progress("training", 1, 2))
    tally.state("c", "stopped", "", {})
    tally.state("b", "registered", "v1", {})
    assert tally.totals() == "3 of 4: 1 done, 1 cached, 1 waiting, 1 stopped, 1 retried"
    assert not tally.active


def test_time_left_follows_finished_pieces_and_how_many_run(clock):
    tally = StageProgress({f"t{i}": 10 for i in range(10)}, clock)
    assert tally.left() is None
    tally.progress("t0", Progress("training", 1, 10, left=30.0))
    tally.progress("t1", Progress("training", 1, 10, left=30.0))
    assert tally.left() == (30 + 30 + 8 * 30) / 2  # nothing has finished: what they say themselves
    clock.now += 10
    tally.state("t0", "registered", "", {})
    tally.state("t1", "registered", "", {})
    tally.progress("t2", Progress("training", 1, 10))
    tally.progress("t3", Progress("training", 1, 10))
    clock.now += 4
    assert tally.left() == (6 + 6 + 6 * 10) / 2
    tally.progress("t3", Progress("training", 2, 10, left=500.0))
    assert tally.left() == 500  # the last one to end is not hurried by the mean


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (7500, "2 h 5 min"), (200_000, "2 d 7 h")],
)
def test_durations_in_words(seconds, said):
    assert format_duration(seconds) == said
