"""The command ``ttmoe run`` on a library so small that most of the time is the start of Ray."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
import yaml
from commands import (
    SCRIPT,
    cells,
    environment,
    here,
    open_registry,
    runs,
    statuses,
    succeeded,
    versions,
)
from killed_driver import units_inline
from quickstart import ROOT
from typer.testing import CliRunner

from orchestrator.cli import app

pytestmark = pytest.mark.integration

CONFIG = """\
library: tiny
base: {folder: base, max_length: 32}
adapter: {rank: 4, alpha: 8}
train: {steps: 60, batch_size: 16, eval_every: 20, lr: 1e-2, head_lr: 1e-2}
tasks:
  colours:
    kind: text
    source: {path: colours.jsonl}
    columns: {text: text}
    label: {column: label}
  animals:
    kind: text
    source: {path: animals.jsonl}
    columns: {text: text}
    label: {column: label, names: {cat: a cat, dog: a dog}}
router: {batch_size: 32, unknown: 0}  # the row with mark-up resembles no training row
"""
SEARCH = "search: {task: colours, trials: 2, ranks: [1, 2, 4, 8], cores: [4, 6], steps: 10}\n"


def write_library(folder: Path, base_folder: Path, config: str, store: Path | None = None) -> Path:
    """Create a folder with the base, the data of two tasks, the config, and a copy of the empty ``store``."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    if store:
        shutil.copy(store, folder / "runs")
    shutil.copytree(base_folder, folder / "base", dirs_exist_ok=True)
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north")
    tiny.write_texts(folder / "animals.jsonl", tiny.ANIMALS, "south")
    (folder / "tiny.yaml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def home(base_folder, fresh_store, tmp_path_factory) -> Path:
    """The folder of the first run. That of the quickstart is a process of its own, and creates its store."""
    folder = write_library(tmp_path_factory.mktemp("run"), base_folder, CONFIG + SEARCH, fresh_store)
    done = succeeded(here(folder, "run", "tiny.yaml"))
    (folder / "first.txt").write_text(done.out)
    return folder


def without(planned: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """What ``ttmoe plan --json`` prints of a plan, without some of its keys."""
    from orchestrator.plan.json_output import to_json

    return {key: value for key, value in json.loads(to_json(planned)).items() if key not in keys}


def specs(root: Path) -> list[dict[str, Any]]:
    """The specs of the current experts."""
    return [json.loads(version.tags["spec"]) for version in open_registry(root).experts("tiny")]


@pytest.fixture(scope="module")
def root(home: Path) -> Path:
    return home / "runs"


class TestFirstRun:
    def test_it_ends_with_tables_paths_and_the_next_commands(self, home):
        out = (home / "first.txt").read_text()
        for part in (
            "To do: 2 experts (colours, animals), the router, a search of 2 trials",
            "Library tiny on base",
            "colours", "animals", "LoRA-16",
            "Search on colours: 2 trials",
            "Routing accuracy",
            " of worker time: ", "% waiting",
            "confusion.png", "pareto.png",
            "ttmoe predict", "ttmoe experts ls", "ttmoe ui",
            "ttmoe run tiny.yaml --set tasks.colours.train.steps=30", "\nReport: ", "report.html",
        ):  # fmt: skip
            assert part in out, part

    def test_what_it_suggests_next_answers_rows_of_the_library(self, home):
        """Pasted into a shell as it stands there, but for the form of its output."""
        (command,) = re.findall(r"^  (ttmoe predict .*)$", (home / "first.txt").read_text(), re.MULTILINE)
        env = environment(PATH=f"{SCRIPT.parent}:{os.environ['PATH']}")
        done = subprocess.run(["sh", "-c", f"{command} --json"], cwd=home, env=env, capture_output=True, text=True,
                              check=True)  # fmt: skip
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["text"] for answer in answers] == shlex.split(command)[2:]
        assert [answer["task"] for answer in answers] == ["colours", "animals"]
        assert [answer["label"] in answer["text"] for answer in answers] == [True, False]
        assert answers[1]["label"].removeprefix("a ") in answers[1]["text"]

    def test_its_report_says_where_the_seconds_of_each_expert_went(self, root):
        (page,) = root.rglob("report.html")
        section = page.read_text().partition('<section id="time">')[2].partition("</section>")[0]
        for row in ("steps", "waiting", "colours", "animals"):
            assert f"<tr><td>{row}<td>" in section
        assert "not measured" not in section

    def test_the_registry_contains_one_version_of_each_and_the_router_contains_all_experts(self, root):
        assert versions(root) == {"tiny.colours": 1, "tiny.animals": 1, "tiny.router": 1}
        registry = open_registry(root)
        experts = registry.experts("tiny")
        for version in experts:
            assert version.aliases == ("candidate", "champion")
            assert version.metrics["test.accuracy"] > 0.9
            assert version.tags["method"] == "tt"
            assert version.tags["rank"] == "4"
            assert version.tags["base"] == "folder:base"
            for key in ("base_digest", "shape", "data_fingerprint", "weights_digest", "metric"):
                assert version.tags[key]
            assert int(version.tags["parameters"]) < int(version.tags["lora16_parameters"])
        router = registry.router("tiny")
        assert router.aliases == ("candidate", "champion")
        assert router.metrics["test.routing_accuracy"] > 0.95
        folder = registry.fetch(router)
        lock = {version.task: version.spec_hash for version in experts}
        assert json.loads((folder / "lock.json").read_text()) == lock
        for version in experts:
            inside = folder / "experts" / version.task / "expert.safetensors"
            assert inside.read_bytes() == (registry.fetch(version) / "expert.safetensors").read_bytes()

    def test_every_run_is_finished_and_has_the_right_parent(self, root):
        assert statuses(root) == {
            ("run", "FINISHED"): 1, ("expert", "FINISHED"): 3,  # two experts and the router
            ("search", "FINISHED"): 1, ("trial", "FINISHED"): 2,
        }  # fmt: skip
        found = {run.info.run_id: run for run in runs(root)}
        kinds = {"expert": "run", "trial": "search"}
        for run in found.values():
            kind = run.data.tags["ttmoe.kind"]
            if kind in kinds:
                assert found[run.data.tags["ttmoe.run"]].data.tags["ttmoe.kind"] == kinds[kind]
        experts = [run for run in found.values() if run.data.tags["ttmoe.kind"] == "expert"]
        colours = next(run for run in experts if run.data.tags["ttmoe.task"] == "colours")
        client = open_registry(root).client
        assert len(client.get_metric_history(colours.info.run_id, "train.loss")) == 60
        assert [m.step for m in client.get_metric_history(colours.info.run_id, "validation.accuracy")] == [20, 40, 60]

    def test_each_expert_has_a_log_and_the_plots_are_png_files(self, root):
        for task in ("colours", "animals"):
            assert len(list((root / "tiny" / "experts").glob(f"{task}-*/log.txt"))) == 1
        pictures = list((root / "mlartifacts").rglob("*.png"))
        assert {path.name for path in pictures} == {"confusion.png", "pareto.png"}
        assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pictures)

    def test_the_evaluation_counts_every_test_row(self, root):
        registry = open_registry(root)
        evaluation = json.loads((registry.fetch(registry.router("tiny")) / "evaluation.json").read_text())
        rows = sum(test["rows"] for test in evaluation["tasks"].values())
        assert sum(map(sum, evaluation["confusion"])) == rows
        for i, task in enumerate(evaluation["confusion_tasks"]):
            assert evaluation["confusion"][i][i] == evaluation["tasks"][task]["routed_right"]
            assert sum(evaluation["confusion"][i]) == evaluation["tasks"][task]["rows"]


class TestThen:
    """Commands after the first run, in this order."""

    def test_the_same_command_again_does_nothing(self, home, root):
        before = versions(root), statuses(root)
        done = succeeded(here(home, "run", "tiny.yaml"))
        assert "Cached: colours, animals" in done.out
        assert "To do: nothing" in done.out
        assert "Library tiny on base" in done.out
        assert (versions(root), statuses(root)) == before

    def test_from_python_the_commands_return_what_they_print(self, home, root, monkeypatch, capfd):
        """The functions print nothing, work in a thread, and leave the process as it was."""
        from orchestrator.api import plan, predict, run, status
        from orchestrator.plan.json_output import to_json

        texts = ["north3 red north7", "dog south1 south2"]
        printed = {name: succeeded(here(home, *arguments, "--json")).out for name, arguments in (
            ("plan", ("plan", "tiny.yaml")), ("status", ("status",)), ("predict", ("predict", *texts)))}  # fmt: skip
        monkeypatch.chdir(home)
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        capfd.readouterr()
        with ThreadPoolExecutor(1) as thread:
            planned, made, now = (thread.submit(*call).result() for call in ((plan, "tiny.yaml"), (run, "tiny.yaml"),
                                                                             (status, "tiny")))  # fmt: skip
            answers = thread.submit(predict, texts).result()
        assert capfd.readouterr() == ("", "")
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
        assert planned.problem is None
        varying = {"nodes", "resources"}  # free memory changes
        assert without(planned.to_dict(), varying) == without(json.loads(printed["plan"]), varying)
        assert json.loads(to_json(now.to_dict())) == json.loads(printed["status"])
        assert answers == [json.loads(line) for line in printed["predict"].splitlines()]
        registry = open_registry(root)
        assert {
            task: (expert.state, expert.name, expert.version, expert.accuracy) for task, expert in made.experts.items()
        } == {
            version.task: ("cached", version.name, version.version, version.metrics["test.accuracy"])
            for version in registry.experts("tiny")
        }
        router = registry.router("tiny")
        assert (made.router.name, made.router.version, made.router.metrics) == ("tiny.router", 1, router.metrics)
        assert (made.run_id, made.report, made.failed) == (None, None, {})

    def test_the_readmes_functions_run_as_they_stand_there(self, home, monkeypatch, capsys):
        monkeypatch.chdir(home)
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        (block,) = [block for block in blocks if "orchestrator.api" in block]
        for name, here_ in (("ttmoe.yaml", "tiny.yaml"), ("my_task", "colours"), ("where is it", "north3 red north7")):
            assert name in block
            block = block.replace(name, here_)
        exec(block, {})
        accuracy, routing, report, label = capsys.readouterr().out.split()
        assert float(accuracy) > 0.9
        assert float(routing) > 0.95
        assert (report, label) == ("None", "red")

    def test_where_auto_would_be_another_dtype_the_library_keeps_its_own(self, home, monkeypatch):
        (base,) = {expert["base"]["dtype"] for expert in specs(home / "runs")}
        other = {"float32": "bfloat16", "bfloat16": "float32"}[base]
        monkeypatch.setattr("orchestrator.plan.library_base.choose_base_dtype", lambda resources, nodes: other)
        assert "To do: nothing" in succeeded(here(home, "run", "tiny.yaml")).out
        out = succeeded(here(home, "plan", "tiny.yaml")).out
        assert "2 experts: 2 cached" in out
        assert f"{base}, kept as the library's experts have it" in out

    def test_experts_ls(self, home):
        done = succeeded(here(home, "experts", "ls"))
        assert "Library tiny" in done.out
        for task in ("animals", "colours"):
            assert cells(done.out, task)[1:3] == ["1", "candidate champion"]
        assert "router v1: routing accuracy" in done.out

    def test_predict(self, home):
        texts = ["north3 red north7", "dog south1 south2", "[/b] south4 cat"]
        done = succeeded(here(home, "predict", *texts))
        for text, task, label in zip(texts, ("colours", "animals", "animals"), ("red", "a dog", "a cat"), strict=True):
            row = cells(done.out, text)
            assert row[1:3] == [task, label]
            assert 0.5 < float(row[3]) <= 1

    def test_one_changed_task_retrains_only_that_expert_and_the_router(self, home, root):
        def cached():
            # Without the digests of files, which are kept once the files have not changed for a minute.
            files = [path for path in (root / "cache").rglob("*") if path.is_file() and path.parent.name != "digests"]
            return {path: path.stat().st_mtime_ns for path in files}

        before = cached()
        with units_inline():
            done = succeeded(here(home, "run", "tiny.yaml", "--set", "tasks.animals.train.steps=40"))
        assert "Cached: colours" in done.out
        assert "To do: 1 expert (animals), the router\n" in done.out
        assert versions(root) == {"tiny.colours": 1, "tiny.animals": 2, "tiny.router": 2}
        registry = open_registry(root)
        assert {v.task: v.version for v in registry.experts("tiny")} == {"colours": 1, "animals": 2}
        assert registry.router("tiny").version == 2
        assert statuses(root)["expert", "FINISHED"] == 5
        assert statuses(root)["search", "FINISHED"] == 1
        # Caches of the base and the data were not computed again.
        assert cached() == before

    def test_with_the_first_config_again_the_earlier_versions_are_promoted(self, home, root):
        done = succeeded(here(home, "run", "tiny.yaml"))
        assert "To do: nothing" in done.out
        assert versions(root) == {"tiny.colours": 1, "tiny.animals": 2, "tiny.router": 2}
        registry = open_registry(root)
        assert {v.task: v.version for v in registry.experts("tiny")} == {"colours": 1, "animals": 1}
        assert registry.router("tiny").version == 1

    def test_a_base_that_was_moved_and_renamed_trains_nothing_and_is_found_after_a_run(self, home, root):
        commands = (("predict", "north3 red north7"), ("experts", "verify"), ("experts", "export", "colours", "out"))
        moved = ("--set", "base.folder=elsewhere/renamed")
        (home / "elsewhere").mkdir()
        (home / "base").rename(home / "elsewhere" / "renamed")
        planned = json.loads(succeeded(here(home, "plan", "tiny.yaml", "--json", *moved)).out)
        work = [*planned["experts"].values(), planned["router"], planned["search"]]
        assert {part["state"] for part in work} == {"cached"}
        for command in commands:
            done = here(home, *command)
            assert done.code != 0
            assert f"base 'base' is not in folder '{home / 'base'}'" in done.out + done.err
            assert "repeat `ttmoe run CONFIG` with its new place" in done.err
            assert "backup" not in done.err  # the files are well
        before = versions(root), statuses(root)
        assert "To do: nothing" in succeeded(here(home, "run", "tiny.yaml", *moved)).out
        assert (versions(root), statuses(root)) == before
        for command in commands:
            succeeded(here(home, *command))
        (home / "elsewhere" / "renamed").rename(home / "base")  # where it was when the router was trained
        succeeded(here(home, *commands[0]))


@pytest.mark.thorough
class TestSearchThatIsInterrupted:
    """A search with one choice that fails, stopped by Ctrl-C when its first trial has been recorded, and repeated."""

    @pytest.fixture
    def search(self, home):
        """Run the search; returns how the command ended."""
        trained = home / "trained.txt"

        def run_trials(jobs, report):  # a local function reaches the workers by value
            from workers.failure import Failure
            from workers.tuning.trial_job import run_trials

            with trained.open("a") as file:
                file.writelines(f"{job.expert.adapter.rank} {job.expert.adapter.shape}\n" for job in jobs)
            fails = [job.expert.task for job in jobs if job.expert.adapter.rank == 8]
            failures = dict.fromkeys(fails, Failure("code", "ValueError", "no [/such] rank"))
            return failures | run_trials([job for job in jobs if job.expert.task not in fails], report)

        def run():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("orchestrator.search.trial_units.run_trials", run_trials)
                return here(home, "run", "tiny.yaml", "--set", "search.trials=4", "--set", "search.cores=[4, 4]",
                            "--set", "search.steps=5", "--set", "resources.max_parallel=1")  # fmt: skip

        return run

    def test_trials_that_finished_are_not_made_again_and_the_failed_one_is_marked(self, home, root, search):
        from orchestrator.search.trial_runs import TrialRuns

        before = statuses(root)
        with pytest.MonkeyPatch.context() as patch:
            real = TrialRuns.record_rung

            def record(runs, trial):
                real(runs, trial)
                raise KeyboardInterrupt

            patch.setattr(TrialRuns, "record_rung", record)
            assert search().code == 130
        assert statuses(root) - before == {("run", "KILLED"): 1, ("search", "KILLED"): 1, ("trial", "FINISHED"): 1}
        done = succeeded(search())
        assert "Search on colours: 3 trials" in done.out
        assert "failed: ValueError: no [/such] rank" in done.out
        assert statuses(root) - before == {
            ("run", "KILLED"): 1, ("run", "FINISHED"): 1,
            ("search", "FINISHED"): 1, ("trial", "FINISHED"): 3, ("trial", "FAILED"): 1,
        }  # fmt: skip
        (failed,) = [run for run in runs(root) if run.info.status == "FAILED"]
        assert failed.data.tags["ttmoe.error"] == "ValueError: no [/such] rank"
        tried = Counter((home / "trained.txt").read_text().splitlines())
        assert sorted(tried.values()) == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def stopped(base_folder, fresh_store, tmp_path_factory) -> Path:
    """The folder of a run that Ctrl-C stopped after its first expert, with its output and exit code."""
    home = write_library(tmp_path_factory.mktemp("stopped"), base_folder, CONFIG, fresh_store)
    command = [commands.SCRIPT, "run", "tiny.yaml", "--set", "tasks.animals.train.steps=1000000",
               "--set", "tasks.animals.train.patience=0", "--set", "on_end=cat > told.json"]  # fmt: skip
    out, mark = home / "out.txt", f"stopped-{home}"
    with out.open("w") as file:
        env = commands.environment(TTMOE_TEST=mark, PYTHONUNBUFFERED="1")
        process = subprocess.Popen(command, cwd=home, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            assert tiny.wait_for(lambda: "colours: registered" in out.read_text(), 120), out.read_text()
            other = here(home, "run", "tiny.yaml")  # a second driver at the same time
            process.send_signal(signal.SIGINT)
            (home / "code").write_text(str(process.wait(60)))
        finally:
            process.kill()
            process.wait()
    (home / "other.txt").write_text(f"{other.code}\n{other.err}")
    (home / "left.txt").write_text("\n".join(tiny.left_running(mark)))
    return home


class TestCtrlC:
    """Ctrl-C after one expert is registered, while the other is being trained."""

    def test_it_says_so_and_leaves_nothing_running(self, stopped):
        assert (stopped / "code").read_text() == "130"
        assert "interrupted; repeat the command to continue" in (stopped / "out.txt").read_text()
        assert "Traceback" not in (stopped / "out.txt").read_text()
        assert (stopped / "left.txt").read_text() == ""
        told = json.loads((stopped / "told.json").read_text())
        assert (told["status"], told["exit_code"], told["counts"]) == (
            "interrupted",
            130,
            {"registered": 1, "missing": 1},
        )

    def test_no_second_driver_could_start(self, stopped):
        code, error = (stopped / "other.txt").read_text().split("\n", 1)
        assert code == "2"
        assert "another run of this library is in progress" in error

    def test_the_finished_expert_is_kept_and_no_run_remains_open(self, stopped):
        assert versions(stopped / "runs") == {"tiny.colours": 1}
        assert statuses(stopped / "runs") == {("run", "KILLED"): 1, ("expert", "FINISHED"): 1, ("expert", "KILLED"): 1}

    def test_the_open_run_of_a_killed_driver_is_closed_and_the_work_continues(self, stopped):
        root = stopped / "runs"
        registry = open_registry(root)
        registry.start_run("tiny", "left by a crash", {}, "a: 1\n", {})
        assert statuses(root)["run", "RUNNING"] == 1
        with units_inline():
            done = succeeded(here(stopped, "run", "tiny.yaml"))
        assert "Cached: colours" in done.out
        assert versions(root) == {"tiny.colours": 1, "tiny.animals": 1, "tiny.router": 1}
        assert not [run for run in runs(root) if run.info.status == "RUNNING"]


class TestBadInput:
    """Invalid input is reported before any work, with exit code 2."""

    @pytest.fixture
    def refused(self, base_folder, fresh_store, tmp_path, monkeypatch):
        """A function that runs a changed config, checks that nothing was registered, and returns the message."""

        def run(change, *arguments: str) -> str:
            config = yaml.safe_load(CONFIG + SEARCH)
            write_library(tmp_path, base_folder, "", fresh_store)
            change(config, tmp_path)
            (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
            monkeypatch.chdir(tmp_path)
            began = time.process_time()  # not of the tests beside it
            result = CliRunner().invoke(app, ["run", "tiny.yaml", *arguments])
            assert result.exit_code == 2, result.output
            assert time.process_time() - began < 20
            assert versions(tmp_path / "runs") == {}
            assert runs(tmp_path / "runs") == []
            return " ".join(result.stderr.split())

        return run

    def test_a_missing_file(self, refused):
        message = refused(lambda c, _: c["tasks"]["animals"]["source"].update(path="gone.jsonl"))
        assert "tasks.animals.source" in message
        assert "gone.jsonl" in message

    def test_an_empty_split(self, refused):
        message = refused(lambda _, f: tiny.write_texts(f / "animals.jsonl", tiny.ANIMALS, "south", 4))
        assert "tasks.animals" in message
        assert "no rows in split" in message

    def test_an_unknown_label(self, refused):
        def change(_, folder):
            tiny.write_rows(folder / "animals.jsonl", [*rows(folder), {"text": "a cow", "label": "cow"}])

        def rows(folder):
            return map(json.loads, (folder / "animals.jsonl").read_text().splitlines())

        message = refused(change)
        assert "tasks.animals.label.names" in message
        assert "label 'cow' of row 241 is unknown" in message
        assert "known: cat, dog" in message

    def test_a_shape_that_does_not_multiply_to_the_width(self, refused):
        message = refused(lambda c, _: c["adapter"].update(shape="8x9|8x8"))
        assert "adapter.shape" in message
        assert "72" in message
        assert "a shape that fits: 8x8|8x8" in message

    def test_an_unknown_key_with_a_suggestion(self, refused):
        message = refused(lambda c, _: c["train"].update(stesp=3))
        assert "train.stesp" in message
        assert "did you mean `steps`?" in message

    def test_a_search_that_has_no_shape_to_try(self, refused):
        message = refused(lambda c, _: c["search"].update(cores=[14, 15]))
        assert "search.cores" in message
        assert "14 to 15 cores" in message

    def test_a_missing_base(self, refused):
        message = refused(lambda c, _: c["base"].update(folder="gone"))
        assert "base.folder" in message

    def test_a_missing_config(self, refused):
        assert "no packaged recipe is named 'quickstrat'" in " ".join(
            CliRunner().invoke(app, ["run", "quickstrat"]).stderr.split()
        )

    def test_a_missing_library(self, tmp_path):
        for command in (["experts", "ls"], ["predict", "x"]):
            result = CliRunner().invoke(app, [*command, "--root", str(tmp_path)])
            assert result.exit_code == 2
            assert "there is no library in this store" in result.stderr
            assert "ttmoe run" in result.stderr
        assert list(tmp_path.iterdir()) == []


def test_an_expert_that_fails_leaves_the_other_registered_and_is_named(base_folder, fresh_store, tmp_path):
    """One expert diverges. The other is kept, and the run is FAILED."""
    home = write_library(tmp_path, base_folder, CONFIG, fresh_store)
    hopeless = ("--set", "tasks.animals.train.lr=1e38", "--set", "tasks.animals.train.clip=0")
    with units_inline():
        done = here(home, "run", "tiny.yaml", *hopeless, "--set", "on_end='cat > told.json; false'")
    assert done.code == 1
    assert "warning: on_end failed" in done.out
    assert "1 of 2 experts failed (animals: DivergedError" in done.err
    assert "kept: colours" in " ".join(done.err.split())
    assert "log.txt" in done.err
    assert versions(home / "runs") == {"tiny.colours": 1}
    assert statuses(home / "runs") == {("run", "FAILED"): 1, ("expert", "FINISHED"): 1, ("expert", "FAILED"): 1}
    failed = next(run for run in runs(home / "runs") if run.info.status == "FAILED" and "ttmoe.error" in run.data.tags)
    assert "DivergedError" in failed.data.tags["ttmoe.error"]
    told = json.loads((home / "told.json").read_text())
    assert (told["status"], told["exit_code"], told["counts"]) == ("failed", 1, {"registered": 1, "failed": 1})
    (run,) = [run for run in runs(home / "runs") if run.data.tags["ttmoe.kind"] == "run"]
    assert told["run_id"] == run.info.run_id
