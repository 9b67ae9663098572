"""``ttmoe status`` of a search: what its trials' runs say, in words that fit the screen."""

import io
import json
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest
from rich.console import Console
from test_status import BEGAN, HERE, NOW, made

from orchestrator.api import status
from orchestrator.progress.search_status import SearchStatus, TrialStatus, read_search_status
from orchestrator.progress.status import read_status
from orchestrator.progress.status_screen import render_status, show_status
from orchestrator.search.trial import RungResult, Trial
from orchestrator.search.trial_runs import TrialRuns

DRIVER = replace(HERE, command="ttmoe tune")
POINT = {"factors": "2+3", "rank": 4}


def search(*trials, **more):
    values = dict(
        run="search trec", status="RUNNING", began=BEGAN, ended=None, tasks=("trec",), steps=200, trials=trials,
        driver=DRIVER, run_id="s1",
    )  # fmt: skip
    return SearchStatus(**(values | more))


def shown(found, **more):
    values = dict(run_id="s1", searches=(found,), driver=DRIVER) | more
    return render_status(made((), **values), NOW).plain


def test_a_search_has_its_counts_what_runs_and_the_best():
    trials = [
        TrialStatus("trec", 1, "sampled", "finished", POINT, 4000, 0, 200, 0.9, 0.3),
        TrialStatus("trec", 2, "sampled", "stopped", {"rank": 2}, 2000, 0, 25, 0.95, 0.2),
        TrialStatus("trec", 3, "sampled", "running", {"rank": 8}, 8000, 2, 75, 0.88, 0.4),
        TrialStatus("trec", 4, "sampled", "failed", {"rank": 1}, 1000, error="ValueError: no\nmore"),
        TrialStatus("trec", 5, "reference", "finished", {"lora": 16}, 90000, 0, 200, 0.99, 0.1),
    ]
    text = shown(search(*trials))
    assert text.startswith("lib: search trec, RUNNING\n")  # the library has no run
    assert "10 minutes ago\n  `ttmoe tune` runs on this machine (process 77)" in text
    assert "5 trials: 2 finished, 1 stopped early, 1 running, 1 failed" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["trec", "3", "running:", "rank", "8;", "seed", "2", "75/200", "0.400", "val", "0.880"] in lines
    assert "trec: 0.900 with 4,000 parameters (trial 1: factors 2+3; rank 4)" in text  # a complete trial comes first
    assert "trec 4: ValueError: no\n" in text + "\n"
    assert "trec: 0.950 with 2,000 parameters, at step 25 (trial 2" in shown(search(trials[1]))
    assert "no trials of 2 tasks" in shown(search(tasks=("a", "b")))


def test_a_thousand_trials_of_forty_tasks_fit_a_screen():
    states = ("finished", "running", "failed", "waiting")
    trials = [
        TrialStatus(f"task-{i % 40}", i, "sampled", states[i % 4], POINT, 9, 0, 25, 0.5 + i / 3000) for i in range(1000)
    ]
    text = shown(search(*trials, tasks=tuple(f"task-{i}" for i in range(40))))
    assert "1000 trials of 40 tasks: 250 finished, 250 running, 250 waiting for the next rung, 250 failed" in text
    assert "… and 230 more running" in text
    assert "… and 245 more (`ttmoe status --json`" in text
    assert len(text.splitlines()) < 65


def test_a_search_that_was_killed_says_what_continues_it_and_one_beside_a_run_follows_it():
    assert "its driver has ended: the same command continues it" in shown(search(driver=None), driver=None)
    ended = search(status="FINISHED", ended=NOW, driver=None)
    assert "took 10 minutes" in shown(ended)
    text = shown(ended, run_id="r1")
    assert text.index("lib: run 1, RUNNING") < text.index("lib: search trec, FINISHED")


def trial(number, rungs, state, task="trec", error=""):
    results = [RungResult(10 * 3**i, value, 1 - value, 1.0) for i, value in enumerate(rungs)]
    point, described = {"lr": 1e-5, "rank": 2}, {"rank": 2, "factors": "2+3", "lr": 1e-5}
    return Trial(task, number, point, f"{number:08d}", 20, description=described, state=state, rungs=results,
                 error=error)  # fmt: skip


@pytest.fixture(scope="module")
def registry(fresh_store, tmp_path_factory):
    """A store with an older search of two tasks, and a newer one that is open; the library has no run."""
    from orchestrator.registry import Registry

    root = tmp_path_factory.mktemp("root")
    shutil.copy(fresh_store, root)
    registry = Registry.open(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    registry.start_run("other", "run", {}, "", {})
    with registry.hold_lease("lib", "ttmoe tune", print):
        pass

    def start(name, tasks):
        plan = {"tasks": tasks, "steps": 90}
        return registry.start_run("lib", name, {"task": ",".join(tasks)}, "", plan, search=True)

    old = start("old", ["spam"])
    runs = TrialRuns("lib", old, registry)
    runs.record_rung(trial(9, [0.99], "finished", "spam"))
    registry.finish_run(old, "FINISHED")
    runs = TrialRuns("lib", start("new", ["trec", "mrpc"]), registry)
    for each in (trial(1, [0.6, 0.8], "finished"), trial(2, [0.7], "waiting"), trial(3, [0.5], "waiting")):
        runs.record_rung(each)
    runs.start(replace(trial(3, [0.5], "running"), run_id=runs.registry.trial_runs("lib")[-1].run_id))
    runs.record_failure(trial(4, [], "failed", error="OSError: disk"))
    runs.start(trial(5, [], "running", "mrpc"))
    return registry


def test_the_runs_tell_each_trials_state(registry):
    found = read_search_status(registry, "lib", DRIVER, None)
    assert (found.run, found.tasks, found.steps, found.driver) == ("new", ("trec", "mrpc"), 90, DRIVER)
    assert [(each.task, each.number, each.state, each.step) for each in found.trials] == [
        ("mrpc", 5, "running", 0), ("trec", 1, "finished", 30), ("trec", 2, "waiting", 10), ("trec", 3, "running", 10),
        ("trec", 4, "failed", 0)]  # fmt: skip
    assert (found.trials[1].accuracy, found.trials[1].parameters, found.trials[0].accuracy) == (0.8, 20, None)
    assert found.trials[4].error == "OSError: disk"
    assert {task: each.number for task, each in found.best.items()} == {"trec": 1}
    without = read_search_status(registry, "lib", None, None)
    assert without.counts == {"interrupted": 3, "finished": 1, "failed": 1}
    assert read_search_status(registry, "other", None, None) is None


def test_the_views_of_the_pages_show_what_the_runs_have(registry):
    experiment = registry.experiment("lib", search=True)
    states = {key: json.loads(json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["state"])
              for key in ("trials", "searches")}  # fmt: skip
    found = {key: registry.client.search_runs([experiment.experiment_id], state["searchFilter"])
             for key, state in states.items()}  # fmt: skip
    assert (len(found["trials"]), len(found["searches"])) == (6, 2)
    (finished,) = [run for run in found["trials"] if run.data.tags["mlflow.runName"] == "trec 1"]
    data = {"metrics": finished.data.metrics, "params": finished.data.params, "tags": finished.data.tags}
    columns = [column.replace("`", "").split(".", 1) for column in states["trials"]["selectedColumns"]]
    assert [key for kind, key in columns if key not in data[kind]] == []
    assert data["tags"]["mlflow.note.content"] == "sampled: lr 1e-05; rank 2. 20 parameters"


def test_a_library_without_a_run_shows_its_search_and_nothing_is_written(registry, monkeypatch):
    for name in dir(registry.client):
        if name.startswith(("set_", "delete_", "create_", "log_", "update_", "restore_")):
            monkeypatch.setattr(registry.client, name, lambda *args, name=name: pytest.fail(name))
    found = read_status(registry, "lib")
    assert (found.run, found.status, found.experts, found.search) == ("new", "RUNNING", (), True)
    assert found.run_id == found.searches[0].run_id
    console = Console(file=io.StringIO(), width=200)
    show_status(found, console)
    assert "lib: new, RUNNING" in console.file.getvalue()


def test_the_json_has_the_search_with_its_points_as_they_are(registry):
    console = Console(file=io.StringIO(), width=40)
    show_status(status(root=registry.artifact_root.parent), console, as_json=True)
    content = json.loads(console.file.getvalue())
    (found,) = content["searches"]
    assert found["trials"][1]["point"] == {"lr": 1e-5, "rank": 2}
    assert (found["best"], found["counts"]["finished"]) == ({"trec": 1}, 1)
    assert {"library", "run", "status", "began", "experts", "cached", "router", "counts"} <= content.keys()


def test_beside_a_run_only_a_search_that_goes_on_or_ended_since_is_shown(registry):
    registry.finish_run(registry.newest_search("lib").run_id, "FINISHED")
    ended = registry.newest_search("lib").ended
    assert read_search_status(registry, "lib", None, ended - timedelta(seconds=1)).status == "FINISHED"
    assert read_search_status(registry, "lib", None, ended + timedelta(seconds=1)) is None
    registry.start_run("lib", "run", {}, "", {})
    assert registry.newest_run("lib").began > ended
    assert (read_status(registry, "lib").run, read_status(registry, "lib").searches) == ("run", ())
    old = next(run for run in registry.trial_runs("lib") if run.tags["task"] == "spam").tags["run"]
    registry.client.update_run(old, status="RUNNING")  # it is continued
    assert read_status(registry, "lib").searches[0].run_id == registry.newest_search("lib").run_id == old
