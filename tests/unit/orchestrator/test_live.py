"""The live view: plain lines into a file, a table on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.live import LiveView, Row
from workers.progress import Progress


@pytest.fixture
def plain():
    """A view that writes to a file, and what it wrote."""
    console = Console(file=io.StringIO(), force_terminal=False, width=60)
    return LiveView(console), lambda: console.file.getvalue().splitlines()


@pytest.fixture
def terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=110, _environ={"TERM": "xterm"})
    return LiveView(console), lambda: console.file.getvalue()


def test_a_row_keeps_metrics_that_a_report_does_not_name():
    row = Row()
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


def test_a_terminal_keeps_each_stages_last_table(terminal):
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
    assert "1 of 2 done" in first
    for part in ("trec", "training", "step 120/300", "0.250", "cached", "a word"):
        assert part in first
    last = text()
    assert "Stage 2: router" in last
    assert "1 of 1 done" in last
    assert not view.rows


def test_names_with_brackets_do_not_break_the_table(terminal):
    view, text = terminal
    with view:
        view.stage("Stage", "task", {"x": 1})
        view.state("x", "failed", "expected [/Users] in [red]")
    assert "[/Users]" in text()


def test_the_view_ends_with_an_error_inside(terminal):
    view, _ = terminal
    with pytest.raises(ZeroDivisionError), view:
        1 / 0  # noqa: B018
    assert not view.live.is_started
