"""Failures during ``ttmoe run`` on Ray: in the end the registry is the same as after an uninterrupted run.

The comparison includes the weights, bit by bit.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import SCRIPT, environment, here, runs, statuses, succeeded, ttmoe, versions
from killed_driver import registry_content
from ray_cluster import marked, running_cluster

pytestmark = pytest.mark.integration

STEPS, EVERY = 120, 10  # each evaluation writes a checkpoint
WORDS = {
    "colours": (tiny.COLOURS, "north"),
    "animals": (tiny.ANIMALS, "south"),
    "both": ((*tiny.COLOURS, *tiny.ANIMALS), "north"),
}
# The learning rates are low so that the last weights are the best: they depend on every step.
CONFIG = f"""\
library: tiny
base: {{folder: base, max_length: 32, dtype: float32}}
adapter: {{rank: 2}}
train: {{steps: {STEPS}, batch_size: 8, eval_every: {EVERY}, patience: 0, lr: 1e-3, head_lr: 1e-3}}
router: {{batch_size: 32, epochs: 2}}
tasks:
"""
DIVERGES = ("lr=1e38", "clip=0")
# Executed at the start of every process of a command. TTMOE_TEST_DISK is the number of seconds by which opening a
# checkpoint is delayed, so that a training can be interrupted, or ``full`` for one expert that cannot write files.
DISK = """\
import errno, os, sys, time
disk = os.environ.get("TTMOE_TEST_DISK", "0")
def opened(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes)) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    path = os.fsdecode(arguments[0])
    if disk != "full":
        time.sleep(float(disk) * ("/checkpoints/" in path))
    elif "/experts/animals-" in path and not path.endswith("/log.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
sys.addaudithook(opened)
"""


@pytest.fixture(scope="module")
def start(base_folder: Path, fresh_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, the data, the config and an empty registry."""
    folder = tmp_path_factory.mktemp("reliability") / "start"
    shutil.copytree(base_folder, folder / "base")
    for task, (words, filler) in WORDS.items():
        tiny.write_texts(folder / f"{task}.jsonl", words, filler, 150)
    (folder / "tiny.yaml").write_text(CONFIG + "".join(entry(task, task) for task in WORDS))
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(DISK)
    (folder / "runs").mkdir()
    shutil.copy(fresh_store, folder / "runs")
    return folder


@pytest.fixture(scope="module")
def fresh(start: Path) -> Callable[[str], Path]:
    """A function that copies ``start`` to a new folder with a given name."""
    return lambda name: shutil.copytree(start, start.parent / name)


@pytest.fixture(scope="module")
def undisturbed(fresh: Callable[[str], Path]) -> dict[str, Any]:
    """The registry's content after an uninterrupted run."""
    home = fresh("undisturbed")
    succeeded(here(home, "run", "tiny.yaml"))
    found = content(home)
    assert set(found["versions"]) == {(f"tiny.{name}", 1) for name in (*WORDS, "router")}
    for task in WORDS:
        own, files, status = found["versions"][f"tiny.{task}", 1]
        assert int(float(own["ttmoe.metric.best_step"])) > STEPS / 2  # the weights show a lost step
        assert (len(files), status) == (1, "READY")
    assert found["work"] == [(name, "FINISHED") for name in ("animals", "both", "colours", "router")]
    return found


def entry(task: str, file: str, more: str = "") -> str:
    """Return a task's lines in a config."""
    return (f"  {task}: {{kind: text, source: {{path: {file}.jsonl}}, columns: {{text: text}}, "
            f"label: {{column: label}}{more}}}\n")  # fmt: skip


def content(home: Path) -> dict[str, Any]:
    """Return the registry's content. Which expert found the base loaded differs between runs and is removed."""
    found = registry_content(home / "runs")
    for own, _, _ in found["versions"].values():
        own.pop("ttmoe.metric.base_loads", None)
    return found


@dataclass(frozen=True)
class Life:
    """A running ``ttmoe run``. Its processes have ``mark`` in their environment."""

    process: subprocess.Popen
    out: Path
    mark: str

    @property
    def text(self) -> str:
        return self.out.read_text()

    def first_steps(self) -> dict[str, int]:
        """Return the first reported step of each task."""
        found: dict[str, int] = {}
        for task, step in re.findall(r"^  (\w+): training, step (\d+)/", self.text, re.M):
            found.setdefault(task, int(step))
        return found

    def trains(self, steps: int) -> None:
        """Wait until one of the tasks has made this number of steps in this process."""

        def taken() -> bool:
            assert self.process.poll() is None, self.text
            firsts = self.first_steps()
            reported = re.findall(r"^  (\w+): training, step (\d+)/", self.text, re.M)
            return any(int(step) - firsts[task] >= steps for task, step in reported)

        assert tiny.wait_for(taken, 90), self.text

    def wait(self) -> int:
        return self.process.wait(150)

    def running(self) -> list[str]:
        return tiny.left_running(self.mark)


def with_disk(home: Path, disk: str) -> dict[str, str]:
    """Return the environment variables of processes on such a disk."""
    return {"TTMOE_TEST_DISK": disk, "PYTHONPATH": str(home / "hook")}


@contextmanager
def started(home: Path, *arguments: str, disk: str = "0.2", **env: str) -> Iterator[Life]:
    """Start ``ttmoe run tiny.yaml`` on such a disk. On exit, kill the processes that still run."""
    mark, out = f"life-{secrets.token_hex(8)}", home / f"out-{secrets.token_hex(4)}.txt"
    settings = environment(TTMOE_TEST=mark, PYTHONUNBUFFERED="1", **with_disk(home, disk), **env)
    with out.open("w") as file:
        command = [SCRIPT, "run", "tiny.yaml", *arguments]
        process = subprocess.Popen(command, cwd=home, stdout=file, stderr=subprocess.STDOUT, env=settings)
    try:
        yield Life(process, out, mark)
    finally:
        for leftover in marked(mark):
            leftover.kill()
        process.wait()


def checkpoints(home: Path) -> dict[str, list[Path]]:
    """Return the checkpoint files of each task, newest first."""
    found: dict[str, list[Path]] = {}
    for path in sorted((home / "runs" / "tiny" / "experts").glob("*/checkpoints/*.checkpoint"), reverse=True):
        found.setdefault(path.parent.parent.name.rpartition("-")[0], []).append(path)
    return found


def folder_of(home: Path, task: str) -> Path:
    (found,) = (home / "runs" / "tiny" / "experts").glob(f"{task}-*")
    return found


# In `make test`, test_worker_pool.py kills a worker in its unit, and test_resuming.py a training between checkpoints.
@pytest.mark.thorough
def test_workers_that_are_killed_are_replaced(fresh, undisturbed):
    """Two workers are killed, at random times; the second before the job of the first is retried.

    A job that dies twice would go on in smaller batches, whose sums are rounded otherwise.
    """
    home, seed = fresh("workers"), secrets.randbelow(10**6)
    draw = random.Random(seed)
    with started(home) as life:
        life.trains(EVERY)
        assert not tiny.wait_for(lambda: life.process.poll() is not None, draw.uniform(0.0, 1.5)), life.text
        assert tiny.wait_for(lambda: len(marked(life.mark, "ray::Worker")) == 2, 30)
        for worker in draw.sample(marked(life.mark, "ray::Worker"), 2):
            worker.kill()
            time.sleep(draw.uniform(0.0, 0.7))
        assert life.wait() == 0, (seed, life.text)
        assert life.running() == []
        assert "retried in 1 s: worker process died" in life.text, seed
    assert content(home) == undisturbed, seed


@dataclass(frozen=True)
class Ended:
    """A finished ``ttmoe run``.

    Attributes:
        left: Processes that still ran after its end.
        began: First step of each task.
        before: Step of the newest valid checkpoint of each task before the start.
    """

    code: int
    output: str
    left: list[str]
    began: dict[str, int]
    before: dict[str, int]


@dataclass(frozen=True)
class Story:
    """Several ``ttmoe run`` of one library, one after another."""

    home: Path
    refused: tuple[int, str]
    cut: tuple[str, Path]
    lives: list[Ended]


@pytest.fixture(scope="module")
def story(fresh) -> Story:
    """Two commands start at once. The one that gets the lock is killed; a checkpoint is truncated; the next run is
    killed, the next one gets Ctrl-C, and the last one finishes."""
    home, lives = fresh("story"), []
    slow = "0.8"  # Ray's processes go on for seconds after the driver was killed

    def goes_on(life: Life, before: dict[str, int], end: signal.Signals | None) -> None:
        if end:
            life.trains(2 * EVERY)
            life.process.send_signal(end)
        code = life.wait()
        lives.append(Ended(code, life.text, life.running(), life.first_steps(), before))

    def newest() -> dict[str, int]:
        return {task: int(paths[0].stem) for task, paths in checkpoints(home).items()}

    with started(home, disk=slow) as one, started(home, disk=slow) as two:
        assert tiny.wait_for(lambda: one.process.poll() != two.process.poll(), 60)
        other, works = (two, one) if one.process.poll() is None else (one, two)
        refused = other.wait(), other.text
        goes_on(works, {}, signal.SIGKILL)
    before = newest()
    task, paths = next((task, paths) for task, paths in checkpoints(home).items() if len(paths) > 1)
    os.truncate(paths[0], paths[0].stat().st_size // 2)
    before[task] = int(paths[1].stem)
    with started(home, disk=slow) as life:
        goes_on(life, before, signal.SIGKILL)
    before = newest()
    with started(home, disk=slow) as life:
        goes_on(life, before, signal.SIGINT)
    before = newest()
    with started(home, disk="0") as life:
        goes_on(life, before, None)
    return Story(home, refused, (task, paths[0]), lives)


@pytest.mark.thorough
class TestStory:
    """Interruptions of one library from its first command to its last."""

    def test_of_two_commands_at_once_one_is_refused(self, story):
        code, output = story.refused
        assert code == 2
        assert "another run of this library is in progress" in " ".join(output.split())
        assert "Traceback" not in output

    def test_each_run_ends_with_its_signal_and_leaves_nothing_running(self, story):
        assert [life.code for life in story.lives] == [-signal.SIGKILL, -signal.SIGKILL, 130, 0]
        assert [life.left for life in story.lives] == [[], [], [], []]
        assert "interrupted; repeat the command to continue" in story.lives[2].output
        assert all("Traceback" not in life.output for life in story.lives)

    def test_each_run_continues_from_the_last_checkpoint(self, story):
        assert story.lives[0].began
        assert set(story.lives[0].began.values()) == {1}
        for i, life in enumerate(story.lives[1:]):
            assert any(task in life.began for task in life.before), i
            for task in life.before.keys() & life.began.keys():
                assert life.began[task] == life.before[task] + 1, (i, task)

    def test_a_truncated_checkpoint_is_reported_and_the_one_before_it_is_used(self, story):
        task, path = story.cut
        assert story.lives[1].began[task] == story.lives[1].before[task] + 1 < int(path.stem)
        log = (folder_of(story.home, task) / "log.txt").read_text()
        assert f"Ignored a checkpoint: {path} is damaged" in log.replace(str(path.resolve()), str(path))

    def test_the_registry_is_the_same_as_without_interruptions(self, story, undisturbed):
        assert content(story.home) == undisturbed
        assert statuses(story.home / "runs")["run", "RUNNING"] == 0


@pytest.mark.thorough
def test_the_jobs_of_a_lost_node_are_run_on_the_other(fresh, undisturbed):
    """A lost node uses up none of `failures.retries`: the run has none. The cluster outlives the run."""
    home = fresh("nodes")
    none = ("--set", "failures.retries=0", "--set", f"storage.root={home / 'runs'}")
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    disk = with_disk(home, "0.2")
    with (
        running_cluster(["--num-cpus=1"], ["--num-cpus=1"], **disk, **auth) as (address, (head, node)),
        started(home, *none, RAY_ADDRESS=address, **auth) as life,
    ):
        life.trains(2 * EVERY)
        assert [len(marked(mark, "ray::Worker")) for mark in (head, node)] == [1, 1]
        for process in marked(node, "raylet") + marked(node):
            if process.is_running():
                process.kill()
        assert life.wait() == 0, life.text
        assert life.running() == []
        assert "retried in 1 s: node lost" in life.text
        assert tiny.wait_for(lambda: marked(head, "ray::") == [], 20)
        assert any("gcs_server" in process.name() for process in marked(head))
    assert content(home) == undisturbed


@pytest.fixture(scope="module")
def failed(fresh) -> tuple[Path, str]:
    """A folder in which one expert had a full disk and one diverged, and the output of the run."""
    home = fresh("failed")
    settings = ["router.require=0.3", "failures.retries=0", *(f"tasks.both.train.{each}" for each in DIVERGES)]
    with started(home, *(f"--set={each}" for each in settings), disk="full") as life:
        assert life.wait() == 4, life.text  # some experts failed
        assert life.running() == []
        assert "Traceback" not in life.text
        return home, " ".join(life.text.split())


@pytest.mark.thorough
class TestTwoFail:
    """One expert has a full disk and one diverges; then the disk has space and the learning rate is corrected."""

    def test_both_are_named_and_the_third_is_registered_with_a_router(self, failed):
        home, output = failed
        assert "error: library tiny 2 of 3 experts failed (" in output
        assert "animals: OSError: [Errno 28] No space left on device: " in output
        assert "both: DivergedError: the loss of 'both' is nan at step" in output
        assert "the router serves the other 1" in output
        assert versions(home / "runs") == {"tiny.colours": 1, "tiny.router": 1}
        own, _, _ = content(home)["versions"]["tiny.router", 1]
        assert set(json.loads(own["ttmoe.lock"])) == {"colours"}

    def test_their_runs_have_failed_with_the_error_as_a_tag(self, failed):
        found = {run.data.tags.get("ttmoe.task"): run for run in runs(failed[0] / "runs")}
        assert {task: run.info.status for task, run in found.items()} == {
            "colours": "FINISHED", "router": "FINISHED", "animals": "FAILED", "both": "FAILED", None: "FAILED",
        }  # fmt: skip
        assert found["both"].data.tags["ttmoe.error"].startswith("DivergedError: the loss of 'both' is nan")
        assert "No space left on device" in found["animals"].data.tags["ttmoe.error"]

    def test_checkpoints_that_cannot_be_written_do_not_end_a_training(self, failed):
        """A result that cannot be written does."""
        log = (folder_of(failed[0], "animals") / "log.txt").read_text()
        missed = re.findall(r"The checkpoint of step (\d+) could not be saved: .*No space left on device", log)
        # The one after the last step is written only if the training takes a second after the one before.
        assert [int(step) for step in missed if int(step) < STEPS] == list(range(EVERY, STEPS, EVERY))

    def test_these_two_and_the_router_are_made_by_the_next_run(self, failed, undisturbed):
        home, _ = failed
        done = succeeded(ttmoe(home, "run", "tiny.yaml"))
        assert "Cached: colours\n" in done.out
        assert "To do: 2 experts (animals, both), the router\n" in done.out
        now = content(home)
        assert set(now["versions"]) == set(undisturbed["versions"]) | {("tiny.router", 2)}
        for task in WORDS:
            assert now["versions"][f"tiny.{task}", 1] == undisturbed["versions"][f"tiny.{task}", 1]
        assert now["versions"]["tiny.router", 2] == undisturbed["versions"]["tiny.router", 1]
        assert now["aliases"] == undisturbed["aliases"] | {"tiny.router": {"candidate": 2, "champion": 2}}
        assert now["running"] == []


@pytest.mark.thorough
def test_if_the_first_experts_fail_with_the_same_error_the_others_are_not_tried(fresh):
    home = fresh("alike")
    tasks = [f"{task}{i}" for i in range(3) for task in WORDS]
    lines = [entry(task, task[:-1], f", train: {{seed: {task[-1]}}}") for task in tasks]
    (home / "tiny.yaml").write_text(CONFIG + "".join(lines))
    done = ttmoe(home, "run", "tiny.yaml", *(word for each in DIVERGES for word in ("--set", f"train.{each}")))
    assert (done.code, done.running) == (1, []), done.err
    output = " ".join(done.err.split())
    assert re.search(r"(\d) of 9 experts failed", output)
    assert "failed with the same error, so the others were not tried" in output
    assert output.count("error:") == 1, output
    assert "Traceback" not in done.err
    assert versions(home / "runs") == {}
    tried = {run.data.tags["ttmoe.task"] for run in runs(home / "runs") if run.data.tags["ttmoe.kind"] == "expert"}
    assert 3 <= len(tried) <= 3 + 2 * (os.cpu_count() or 1)
    assert statuses(home / "runs")["expert", "RUNNING"] == 0


def test_invalid_rows_are_reported_before_any_work(fresh):
    home = fresh("rows")
    with (home / "both.jsonl").open("a") as file:
        file.write('{"text": "a row that is cut\n')
    done = here(home, "run", "tiny.yaml")
    assert (done.code, done.running) == (2, [])
    output = " ".join(done.err.split())
    assert "tasks.both.source" in output
    assert "both.jsonl" in output
    assert "151" in output  # the line
    assert "Traceback" not in done.err
    assert versions(home / "runs") == {}
    assert runs(home / "runs") == []
    assert not (home / "runs" / "tiny" / "experts").exists()
