"""The command ``ttmoe tune`` on a tiny library: by cutting, by trials, and after ``kill -9``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import SCRIPT, environment, here, open_registry, succeeded
from killed_driver import units_inline
from test_run import CONFIG, write_library

from orchestrator.api import plan

pytestmark = pytest.mark.integration

FEW = ("--set", "search.steps=6", "--set", "search.ranks=[1, 2, 4]")


def trials(home: Path) -> list[dict[str, Any]]:
    """Return the trials in the store: task, number, point, origin, state, and the identity of each."""
    runs = open_registry(home / "runs").trial_runs("tiny")
    keys = ("task", "number", "point", "origin", "seed", "state", "spec_hash", "run")
    return [{key: run.tags[key] for key in keys} | {"status": run.status} for run in runs]


@pytest.fixture(scope="module")
def cut(base_folder, fresh_store, tmp_path_factory) -> Path:
    """The folder of a library without any expert, whose tasks were searched by cutting; the output is in tune.json.

    Trials run in this process: on Ray, test_run.py makes a search, and test_readme.py one by cutting.
    """
    home = write_library(tmp_path_factory.mktemp("tune"), base_folder, CONFIG, fresh_store)
    with units_inline():
        done = succeeded(
            here(home, "tune", "tiny.yaml", *FEW, "--set", "search.confirm=1", "--apply", "tuned.yaml", "--json",
                 "--set", "on_end=cat > told.json")
        )  # fmt: skip
    (home / "tune.json").write_text(done.out)
    return home


def test_one_training_of_each_task_gives_every_rank(cut):
    found = Counter((trial["task"], trial["origin"]) for trial in trials(cut))
    each = {"parent": 1, "cut": 2, "reference": 3}
    assert {key: count for key, count in found.items() if key[1] != "confirming"} == {
        (task, origin): count for task in ("colours", "animals") for origin, count in each.items()
    }
    assert found["colours", "confirming"] >= 1
    assert {(trial["state"], trial["status"]) for trial in trials(cut)} == {("finished", "FINISHED")}
    records = json.loads((cut / "tune.json").read_text())["tasks"]
    assert [record["task"] for record in records] == ["colours", "animals"]
    assert all(record["winner"]["seeds"] == 2 for record in records)
    found = json.loads((cut / "tune.json").read_text())
    assert found["shared"]["accuracies"].keys() == {"colours", "animals"}
    assert (cut / found["report"]).is_file()


def test_on_end_is_told_of_the_trials(cut):
    told = json.loads((cut / "told.json").read_text())
    (search,) = {trial["run"] for trial in trials(cut)}
    assert (told["status"], told["run_id"], told["counts"]) == ("finished", search, {"finished": len(trials(cut))})
    assert told["text"] == f"ttmoe: search of tiny finished, trials: {len(trials(cut))} finished"


def test_the_copy_trains_what_was_recommended(cut):
    records = json.loads((cut / "tune.json").read_text())["tasks"]
    before, after = (plan(cut / name).plan.experts for name in ("tiny.yaml", "tuned.yaml"))
    for record in records:
        expert = after[record["task"]]
        assert expert.job.adapter.rank == record["winner"]["rank"]
        assert expert.job.parameters == record["winner"]["parameters"]
        assert expert.job.data == before[record["task"]].job.data
    assert "# ttmoe tune, trial" in (cut / "tuned.yaml").read_text()


def test_again_nothing_is_trained_and_a_second_copy_is_refused_over_the_first(cut):
    before = trials(cut)
    repeated = succeeded(here(cut, "tune", "tiny.yaml", *FEW, "--set", "search.confirm=1")).out
    assert "Finalists on colours" in repeated
    (report,) = re.findall(r"^  search, report +(\S+search\.html)$", repeated, re.MULTILINE)
    assert "One point for all tasks" in (cut / report).read_text()
    assert trials(cut) == before
    refused = here(cut, "tune", "tiny.yaml", *FEW, "--apply", "tuned.yaml")
    assert (refused.code, "already exists" in refused.err) == (2, True)


def test_status_shows_the_search_of_a_library_that_has_no_run(cut):
    shown = succeeded(here(cut, "status")).out
    assert "tiny: search 2 tasks, FINISHED" in shown
    assert f"{len(trials(cut))} trials of 2 tasks: {len(trials(cut))} finished" in shown


def test_a_dry_run_shows_the_space_and_what_is_cached(cut):
    shown = succeeded(here(cut, "tune", "tiny.yaml", *FEW, "--task", "colours", "--dry-run")).out
    assert "colours: 3 points" in shown
    assert "cuts it to 2, 1" in shown
    assert shown.count("cached") == 3
    longer = succeeded(here(cut, "tune", "tiny.yaml", *FEW, "--set", "search.steps=7", "--dry-run")).out
    assert "cached" not in longer
    finished = succeeded(here(cut, "tune", "tiny.yaml", *FEW, "--set", "search.confirm=1", "--dry-run")).out
    assert "none: all of it has been done" in finished
    wrong = here(cut, "tune", "tiny.yaml", "--task", "colour", "--dry-run")
    assert (wrong.code, "no task is named 'colour'" in wrong.err) == (2, True)


TPE = ("tune", "tiny.yaml", "--task", "colours", "--method", "tpe", "--trials", "6", *FEW, "--set", "search.confirm=0",
       "--set", "resources.max_parallel=1")  # fmt: skip


def killed_after(home: Path, ended: int) -> None:
    """Run the search until so many trials have ended, and kill its driver."""
    out, mark = home / "out.txt", f"killed-{home}-{ended}"
    with out.open("w") as file:
        env = environment(TTMOE_TEST=mark, PYTHONUNBUFFERED="1")
        process = subprocess.Popen([SCRIPT, *TPE], cwd=home, stdout=file, stderr=file, env=env, start_new_session=True)
        try:
            enough = lambda: out.read_text().count(": done: ") + out.read_text().count(": cached") >= ended  # noqa: E731
            assert tiny.wait_for(lambda: enough() or process.poll() is not None, 180), out.read_text()
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert tiny.left_running(mark, 60) == []


@pytest.mark.thorough
def test_a_search_that_is_killed_twice_has_every_trial_once_and_the_same_points(base_folder, tmp_path):
    whole, killed = (write_library(tmp_path / name, base_folder, CONFIG) for name in ("whole", "killed"))
    succeeded(here(whole, *TPE))
    for ended in (2, 4):
        killed_after(killed, ended)
    succeeded(here(killed, *TPE))
    found, expected = trials(killed), trials(whole)
    key = lambda trial: int(trial["number"])  # noqa: E731
    same = ("task", "number", "point", "origin", "seed", "state", "spec_hash", "status")
    assert [[trial[name] for name in same] for trial in sorted(found, key=key)] == [
        [trial[name] for name in same] for trial in sorted(expected, key=key)]  # fmt: skip
    assert len({trial["run"] for trial in found}) == 1
