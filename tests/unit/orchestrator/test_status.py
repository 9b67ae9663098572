"""``ttmoe status``: what the record says of a run, in words that fit the screen."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.api import status
from orchestrator.cli import app
from orchestrator.progress.status import (
    DriverStatus,
    ExpertStatus,
    RunStatus,
    estimate_seconds_left,
    read_status,
)
from orchestrator.progress.status_screen import render_status, show_status
from ttmoe.errors import InputError

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
BEGAN = NOW - timedelta(minutes=10)
HERE = DriverStatus("ttmoe run", "here", 77, BEGAN, NOW - timedelta(seconds=20), is_here=True)


def made(experts: tuple[ExpertStatus, ...], **more) -> RunStatus:
    values = dict(
        library="lib", run="run 1", status="RUNNING", began=BEGAN, ended=None, version="0.1",
        commit="", experts=experts, cached=0, router="", search=False, driver=HERE, left=300.0, run_id="abc",
    )  # fmt: skip
    return RunStatus(**(values | more))


def shown(status: RunStatus) -> str:
    return render_status(status, NOW).plain


def test_a_few_experts_have_a_line_each():
    text = shown(
        made(
            (
                ExpertStatus("trec", "training", 120, 300, 0.5, 0.81),
                ExpertStatus("spam", "waiting"),
                ExpertStatus("bad", "failed", error="ValueError: \x1b[2Jno rows\nmore"),
            ),
            cached=2,
            search=True,
            router="running",
        )
    )
    assert "3 experts to train: 1 training, 1 waiting, 1 failed (2 cached), and a search" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["trec", "training", "120/300", "0.500", "val", "0.810"] in lines
    assert ["spam", "waiting"] in lines
    assert ["expert", "state", "step", "loss", "accuracy"] in lines  # the time left of one expert is not known
    assert "bad: ValueError: [2Jno rows\n" in text
    assert "10 minutes ago, experts ready in about 5 minutes" in text
    assert "process 77" in text
    assert text.endswith("router: running")


def test_a_thousand_fit_a_screen():
    experts = [ExpertStatus(f"t{i}", "registered") for i in range(700)]
    experts += [ExpertStatus(f"a{i}", "training", i + 1, 300) for i in range(40)]
    experts += [ExpertStatus(f"f{i}", "failed", error="x") for i in range(60)]
    experts += [ExpertStatus(f"w{i}", "waiting") for i in range(200)]
    text = shown(made(tuple(experts)))
    assert "1000 experts to train: 700 registered, 40 training, 200 waiting, 60 failed" in text
    assert "… and 20 more running" in text
    assert "… and 40 more (`ttmoe status --json`" in text
    assert len(text.splitlines()) < 55


def test_a_driver_that_ended_is_said_in_words_and_only_while_it_matters():
    assert "its driver has ended: the same `ttmoe run` continues it" in shown(made((), driver=None))
    ended = shown(made((), driver=None, status="FINISHED", ended=NOW, left=None))
    assert "driver" not in ended
    assert "took 10 minutes" in ended


def test_where_the_driver_runs_and_since_when():
    began = f"since {BEGAN.astimezone():%Y-%m-%d %H:%M:%S}"
    assert f"its driver runs on this machine (process 77), {began}\n" in shown(made(()))
    there = replace(HERE, command="ttmoe experts rm", host="node7", is_here=False)
    text = f"`ttmoe experts rm` runs on node7 (process 77), {began},\n  last sign of life 20 seconds ago"
    assert text in shown(made((), driver=there))


def test_time_left_follows_the_share_that_is_done():
    half = ExpertStatus("a", "training", 150, 300)
    assert estimate_seconds_left((half, half), 60.0) == 60.0
    assert estimate_seconds_left((ExpertStatus("a", "failed"), ExpertStatus("b", "waiting")), 60.0) == 60.0
    assert estimate_seconds_left((ExpertStatus("a", "waiting"),), 60.0) is None
    assert estimate_seconds_left((), 60.0) is None


def test_the_command_hands_on_its_options(monkeypatch):
    calls = []
    monkeypatch.setattr("orchestrator.api.status", lambda *arguments, **more: calls.append((arguments, more)))
    monkeypatch.setattr("orchestrator.progress.status_screen.show_status", lambda *_, as_json: calls.append(as_json))
    assert CliRunner().invoke(app, ["status"]).exit_code == 0
    assert CliRunner().invoke(app, ["status", "--root", "there", "--library", "mine", "--json"]).exit_code == 0
    assert calls == [
        ((None,), {"root": None, "uri": None}), False,
        (("mine",), {"root": Path("there"), "uri": None}), True,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(fresh_store, tmp_path_factory):
    """A store with a run in the middle of its work, and an older one."""
    from orchestrator.registry import Registry

    root = tmp_path_factory.mktemp("root")
    shutil.copy(fresh_store, root)
    registry = Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    tasks = ["bad", "done", "resumed", "running", "waiting", "cached"]
    old = registry.start_run("lib", "old", {}, "a: 1\n", {})
    resumed = registry.expert_run("lib", old, "resumed", "3" * 8, {"train.steps": 10})
    registry.log_metrics(resumed, [("train.loss", 0.9, 4, 1000)])
    registry.finish_run(resumed, "KILLED")
    registry.finish_run(old, "KILLED")
    plan = {"lock": dict.fromkeys(tasks, "x"), "experts": tasks[:-1], "search": False}
    new = registry.start_run("lib", "new", {"version": "0.1"}, "a: 1\n", plan)
    runs = {
        task: registry.expert_run("lib", new, task, str(i) * 8, {"train.steps": 10})
        for i, task in enumerate(tasks[:4], 1)
    }
    now = int(datetime.now(UTC).timestamp() * 1000) + 1000
    registry.log_metrics(runs["bad"], [("train.loss", float("nan"), 3, now)])
    registry.tag_run(runs["bad"], {"error": "DivergedError: the loss is nan"})
    registry.finish_run(runs["bad"], "FAILED")
    registry.log_metrics(runs["done"], [("train.loss", 0.1, 10, now), ("test.accuracy", 0.93, 0, now)])
    registry.finish_run(runs["done"], "FINISHED")
    rows = [("train.loss", 1 / step, step, now + step) for step in range(1, 6)]
    registry.log_metrics(runs["running"], [*rows, ("validation.accuracy", 0.7, 5, now)])
    router = registry.expert_run("lib", new, "router", "9" * 8, {})
    registry.finish_run(router, "KILLED")
    return root, registry, new


@pytest.mark.integration
def test_the_record_tells_each_experts_state(recorded):
    _, registry, new = recorded
    status = read_status(registry, "lib")
    assert (status.run, status.run_id, status.status, status.cached) == ("new", new, "RUNNING", 1)
    assert (status.driver, status.router, status.search) == (None, "stopped", False)
    states = {expert.task: expert.state for expert in status.experts}
    assert states == {
        "bad": "failed", "done": "registered", "resumed": "waiting", "running": "training", "waiting": "waiting",
    }  # fmt: skip
    by_task = {expert.task: expert for expert in status.experts}
    assert by_task["running"] == ExpertStatus("running", "training", 5, 10, 0.2, 0.7)
    assert by_task["bad"].error == "DivergedError: the loss is nan"
    assert by_task["bad"].loss is None
    assert registry.metric_history(status.run_id, "none") == []


@pytest.mark.integration
def test_the_driver_is_the_holder_of_the_lease_and_looking_changes_nothing(recorded, monkeypatch):
    _, registry, _ = recorded
    writes = []

    def counted(name):
        write = getattr(registry.client, name)
        monkeypatch.setattr(registry.client, name, lambda *args: writes.append(name) or write(*args))

    with registry.hold_lease("lib", "ttmoe run", print):
        for name in dir(registry.client):
            if name.startswith(("set_", "delete_", "create_", "log_", "update_", "restore_")):
                counted(name)
        driver = read_status(registry, "lib").driver
        assert (driver.command, driver.process, driver.is_here) == ("ttmoe run", os.getpid(), True)
        monkeypatch.setattr("orchestrator.registry.process_identity.machine_id", lambda: "another")
        assert not read_status(registry, "lib").driver.is_here
        monkeypatch.setattr("orchestrator.registry.process_identity._exists", lambda process: False)
        assert read_status(registry, "lib").driver is not None
        monkeypatch.setattr("orchestrator.registry.process_identity.machine_id", lambda: driver_machine(registry))
        assert read_status(registry, "lib").driver is None
        assert writes == []
    assert writes == ["delete_experiment_tag"]
    assert read_status(registry, "lib").driver is None


def driver_machine(registry):
    return registry.lease_holder("lib").holder.machine


@pytest.mark.integration
def test_json_is_for_programs(recorded):
    root, _, _ = recorded
    console = Console(file=io.StringIO(), width=40)
    show_status(status(root=root), console, as_json=True)
    content = json.loads(console.file.getvalue())
    assert content["counts"] == {"failed": 1, "registered": 1, "training": 1, "waiting": 2}
    assert content["left"] == round(content["left"], 1)
    assert datetime.fromisoformat(content["began"]).tzinfo is not None
    show_status(status("lib", root=root), console)
    with pytest.raises(InputError, match="no library 'other'"):
        status("other", root=root)


@pytest.mark.integration
def test_a_library_without_a_run(recorded):
    _, registry, _ = recorded
    with pytest.raises(InputError, match="no run"):
        read_status(registry, "never")
