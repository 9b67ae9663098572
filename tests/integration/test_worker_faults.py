"""Call sites of files fail once in the process of a worker: its experts fail shortly or do without, and then complete.

In this process each site of two trainings fails, of those that begin and of those that resume; on Ray, some sites do,
each in the training of another expert.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fault_injection
import pytest
import scripted_jobs
import tiny
from commands import here, open_registry, statuses, versions
from fault_injection import injected, installed
from killed_driver import units_inline

from cluster.local import ray_session
from orchestrator.config.loading import load_config
from orchestrator.plan.planning import make_plan
from orchestrator.plan.quantities import format_names
from workers.base import resident
from workers.expert_result import ExpertResult
from workers.expert_runner import run_experts
from workers.failure import Failure

pytestmark = pytest.mark.integration

STEPS = 6
EVERY = 3  # each evaluation writes a checkpoint
SETTINGS = ("--set", "failures.stop_after=0", "--set", "router.require=all", "--set", "train.eval_every=2",
            "--set", "resources.max_parallel=1")  # fmt: skip


class Stop(BaseException):
    """A stop from outside, after which a training resumes."""


@pytest.fixture(scope="module")
def planned(base_folder, tmp_path_factory):
    """The jobs of two experts."""
    folder = tmp_path_factory.mktemp("worker-faults")
    tasks = {}
    for task, words in (("colours", tiny.COLOURS), ("animals", tiny.ANIMALS)):
        tasks[task] = tiny.text_task(tiny.write_texts(folder / f"{task}.jsonl", words, "north", 60))
    config = {"library": "tiny", "base": {"folder": str(base_folder), "max_length": 32, "dtype": "float32"},
              "adapter": {"rank": 2}, "train": {"steps": STEPS, "batch_size": 8, "eval_every": EVERY}, "tasks": tasks,
              "storage": {"root": str(folder / "runs")}}  # fmt: skip
    return [expert.job for expert in make_plan(load_config(config, []).config).experts.values()]


class Trainings:
    """Trainings of the jobs in one folder, as a worker runs them that has not loaded the base yet."""

    def __init__(self, planned, folder, patch):
        self.patch, self.progress = patch, []
        self.jobs = [replace(job, folder=str(folder / job.task), cache=str(folder / "cache")) for job in planned]

    def run(self, stop_at=None):
        self.patch.setattr(resident, "_resident", None)
        self.patch.setattr(resident, "_began_loading", False)
        self.progress.clear()

        def report(progress):
            self.progress.append((progress.key, progress.state))
            if progress.state == "training" and progress.step == stop_at:
                raise Stop

        return {job.task: run_experts([job], report)[job.task] for job in self.jobs}


@pytest.fixture(params=["begins", "resumes"])
def begun(request, planned, tmp_path, monkeypatch):
    """A function that makes a folder whose trainings begin, or resume from a checkpoint."""
    first = tmp_path / "first"
    if request.param == "resumes":
        with pytest.raises(Stop):
            Trainings(planned, first, monkeypatch).run(EVERY + 1)
        assert list(first.rglob("*.checkpoint"))
    else:
        first.mkdir()

    def make(name):
        return Trainings(planned, Path(shutil.copytree(first, tmp_path / name)), monkeypatch)

    return make


@pytest.fixture
def reached(begun):
    """The sites of a training without faults, and the weights that it makes."""
    begun("imports").run()
    with installed().recorded() as sites:
        done = begun("recorded").run()
    return sorted(sites), {task: result.weights_digest for task, result in done.items()}


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.thorough, id="each"), pytest.param(4, id="some")])
def test_a_fault_is_a_short_failure_or_none_and_the_next_training_completes(begun, reached, every, capsys, tmp_path):
    sites, weights = reached
    wrong, ends = [], Counter()
    for number, site in list(enumerate(sites))[::every]:
        trainings = begun(str(number))
        with installed().failing(site, injected(number)):
            first = trainings.run()
        assert installed().failed, site
        wrong += [(site, outcome) for outcome in first.values() if not _is_sound(outcome, injected(number))]
        ends.update(type(outcome).__name__ for outcome in first.values())
        done = {task for task, outcome in first.items() if isinstance(outcome, ExpertResult)}
        second = trainings.run()
        trained = {key for key, state in trainings.progress if state == "training"}
        if {task: getattr(outcome, "weights_digest", outcome) for task, outcome in second.items()} != weights:
            wrong.append((site, second))
        if lost := trained & done:
            wrong.append((site, f"trained again: {lost}"))
        shutil.rmtree(tmp_path / str(number))
    with capsys.disabled():
        print(f"\nworker: {len(sites[::every])} of {len(sites)} call sites failed once each: {dict(ends)}")
    assert not wrong, "\n".join(map(str, wrong))


def _is_sound(outcome, number):
    """Whether this is a result, or a failure that says shortly what the system refused."""
    if isinstance(outcome, ExpertResult):
        return True
    kinds = ("code",) if number == errno.EACCES else ("system",)
    return (
        isinstance(outcome, Failure)
        and outcome.kind in kinds
        and len(str(outcome).splitlines()) < 3  # what, and what to do
        and len(str(outcome)) < 400
    )


def failing_at(sites, marks):
    """Return a replacement of ``run_experts`` in which the expert of task ``t<n>`` meets a fault at site n, once.

    It is defined inside a function so that Ray pickles it by value: workers cannot import this file.
    """

    def run_experts(jobs, report):
        from dataclasses import replace

        from workers.base import resident
        from workers.expert_runner import run_experts as train

        outcomes, injector = {}, installed()
        for job in jobs:
            number, mark = int(job.task[1:]), marks / job.task
            resident._resident = None  # each job loads the base, and reads its own rows
            own = replace(job, cache=f"{job.folder}.cache")
            if mark.exists():
                outcomes |= train([own], report)
                continue
            with injector.failing(sites[number], injected(number)):
                outcomes |= train([own], report)
            mark.write_text(str(injector.failed))
        return outcomes

    return run_experts


@pytest.mark.parametrize("count", [pytest.param(0, marks=pytest.mark.thorough, id="each"), pytest.param(6, id="some")])
def test_faults_of_workers_on_ray(base_folder, fresh_store, planned, tmp_path, monkeypatch, count, capsys):
    """Errors of the system are retried, others fail their expert alone; the next command trains these."""
    from orchestrator.run import stage1

    trainings = Trainings(planned[:1], tmp_path / "recorded", monkeypatch)
    with installed().recorded() as reached:
        trainings.run()
    sites = sorted(reached)
    sites = sites[:: len(sites) // count][:count] if count else sites
    config = scripted_jobs.write_library(tmp_path, base_folder, len(sites))
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    (tmp_path / "marks").mkdir()
    monkeypatch.setattr(stage1, "run_experts", failing_at(sites, tmp_path / "marks"))
    monkeypatch.setenv("PYTHONPATH", str(Path(fault_injection.__file__).parent))  # which workers import
    with ray_session():
        kept = check_first(tmp_path, config.name, len(sites))
    with units_inline():
        check_second(tmp_path, config.name, len(sites), kept)
    with capsys.disabled():
        print(f"\nworkers on Ray: {len(sites)} call sites failed once each")


def check_first(folder, config, count):
    """Run, and return the tasks whose experts are registered: all but those with an error that is not retried."""
    first, tasks = here(folder, "run", config, *SETTINGS), _tasks(count)
    assert {mark.read_text() for mark in (folder / "marks").iterdir()} == {"True"}, first.err
    kept = {version.task for version in open_registry(folder / "runs").experts("many")}
    assert tasks - kept <= {task for task in tasks if injected(int(task[1:])) == errno.EACCES}
    assert "Traceback" not in first.out + first.err
    assert first.code == (1 if tasks - kept else 0), first.err
    assert ("error: " in first.err) == bool(tasks - kept)
    return kept


def check_second(folder, config, count, kept):
    """Run again: it trains the other experts."""
    second = here(folder, "run", config, *SETTINGS)
    assert second.code == 0, second.err
    assert f"Cached: {format_names(sorted(kept), 20)}\n" in second.out
    assert versions(folder / "runs") == dict.fromkeys([*(f"many.{task}" for task in _tasks(count)), "many.router"], 1)
    assert statuses(folder / "runs")["expert", "FINISHED"] == count + 1  # the router


def _tasks(count):
    return {f"t{i:04}" for i in range(count)}
