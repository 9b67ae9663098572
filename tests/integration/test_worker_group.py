"""Groups of processes in the worker pool: one result and one failure for all, and none waits for one that is gone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_causal
from ray_cluster import own_session

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.device_record import DeviceRecord
from orchestrator.pool.work_units import LOG_FILE, WorkUnit
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import InfeasibleError
from workers.base.base_sources import resolve_base

pytestmark = pytest.mark.integration
PAIR = JobResources(cpus=0.5, processes=2)


@pytest.fixture(scope="module")
def ray():
    """One Ray session for the module."""
    with own_session("group") as mark:
        yield mark


@pytest.fixture(scope="module")
def shared(ray):
    """A pool with one group at a time: the start of a group takes longer than what most tests check of it."""
    with WorkerPool(PAIR, FailureSettings(code_retries=1), max_workers=1) as pool:
        yield pool


@pytest.fixture
def pool(shared, monkeypatch):
    """The shared pool, which counts the groups that a test starts and forgets which failed."""
    monkeypatch.setattr(shared, "devices", DeviceRecord())
    monkeypatch.setattr(shared, "started", 0)
    return shared


def run(pool, *units):
    """Return each job's last event and its failures that were retried, by key."""
    last, retried = {}, {key: [] for unit in units for key in unit.jobs}
    for event in pool.run(units):
        if event and event.retry:
            retried[event.key].append(event.failure)
        if event and event.done:
            last[event.key] = event
    return last, retried


# Nested functions are pickled by value: the workers cannot import this file.
def summing(folder):
    """Return a job that adds the ranks of its group in a collective, and whose processes may fail first."""

    def work(fates, report):
        import torch
        import torch.distributed as dist

        from workers.progress import Progress

        rank = dist.get_rank()
        print(f"here is {rank}")
        report(Progress("training", rank, 2))
        mark = Path(folder, f"{rank} failed")
        if rank in fates and not mark.exists():
            mark.touch()
            if fates[rank] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if fates[rank] == "hangs":
                time.sleep(3600)
            raise ValueError(f"{rank} fails")
        ranks = torch.tensor([rank])
        dist.all_reduce(ranks)
        return os.getpid(), int(ranks)

    return work


def test_a_unit_runs_in_all_processes_of_a_group_and_has_one_result(pool, tmp_path):
    work = summing(str(tmp_path))
    first, _ = run(pool, WorkUnit.of("first", work, ({},), tmp_path / "first"))
    second, _ = run(pool, WorkUnit.of("second", work, ({},), tmp_path / "second"))
    assert pool.started == 1
    (pid, total), (later_pid, _) = first["first"].result, second["second"].result
    assert total == 1
    assert pid == later_pid  # the group stays
    assert "here is 0" in (tmp_path / "first" / LOG_FILE).read_text()
    assert "here is 1" in (tmp_path / "first" / "log.rank1.txt").read_text()


@pytest.mark.parametrize(
    ("rank", "fate", "kind"),
    [
        (1, "hangs", "stalled"),
        pytest.param(1, "dies", "died", marks=pytest.mark.thorough),
        pytest.param(0, "dies", "died", marks=pytest.mark.thorough),
        pytest.param(1, "raises", "code", marks=pytest.mark.thorough),
    ],
)
def test_a_process_that_fails_fails_the_unit_once_and_a_new_group_repeats_it(
    pool, tmp_path, monkeypatch, rank, fate, kind
):
    unit = WorkUnit.of("job", summing(str(tmp_path)), ({rank: fate},), tmp_path / "job")
    monkeypatch.setattr(pool, "stall_seconds", 8.0)
    start, before = time.monotonic(), len(pool.workers)
    last, retried = run(pool, unit)
    assert before + pool.started >= 2  # after an error of the code, the pool also looks for another device
    assert last["job"].result[1] == 1
    assert [failure.kind for failure in retried["job"]] == [kind]
    assert kind == "stalled" or f"process {rank} of 2" in retried["job"][0].message
    assert time.monotonic() - start < 120  # torch's collectives wait for half an hour


def test_a_group_that_does_not_fit_is_refused_before_anything_starts(ray):
    with pytest.raises(InfeasibleError, match=r"room for \d+ of its 64 processes"):
        WorkerPool(replace(PAIR, processes=64), FailureSettings()).__enter__()


def expert_units(folder, base, data, tasks, dies_at=None):
    """Return a unit for each task, all of them on the same rows; the last process may die once, after some step."""
    from ttmoe.adapter import AdapterSpec, count_parameters
    from ttmoe.bank import Bank
    from ttmoe.base import load_body
    from workers.expert_job import ExpertJob
    from workers.training.settings import TrainSettings, ZeroSettings

    spec = AdapterSpec(targets=("q", "v"), rank=4, first_layer=1)
    parameters = count_parameters(Bank(load_body(base), base.pooling).build_expert(spec, 3).adapter.groups)
    zero = ZeroSettings(param_persistence_threshold=0)
    train = TrainSettings(steps=12, eval_every=4, batch_size=16, lr=1e-2, seed=1, engine="deepspeed", deepspeed=zero)
    mark = str(folder / "died")

    def train_expert(jobs, report):
        import torch.distributed as dist

        from workers.expert_runner import run_experts

        def watched(progress):
            report(progress)
            last = dist.get_rank() == dist.get_world_size() - 1
            if last and progress.step == dies_at and not Path(mark).exists():
                Path(mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return run_experts(tuple(jobs.values()), watched)

    units = []
    for task in tasks:
        job = ExpertJob(task, base, data, spec, "trained", train, "cd" * 32, parameters, str(folder / task))
        units.append(WorkUnit(train_expert, {task: job}, folder / task / LOG_FILE))
    return units


def test_a_group_trains_expert_after_expert_on_one_base_and_survives_a_process(pool, tmp_path, colours):
    folder = tiny_causal.save_causal_base(tmp_path / "base")
    base = resolve_base(folder=str(folder), cache=tmp_path / "cache", dtype="float32", max_length=16)
    before = len(pool.workers)  # two, if an earlier test has left another group
    quiet, _ = run(pool, *expert_units(tmp_path / "quiet", base, colours, ("a", "b", "c")))
    disturbed, retried = run(pool, *expert_units(tmp_path / "disturbed", base, colours, ("a",), dies_at=6))
    assert pool.started == 2 - before  # one more than that of which a process died
    assert [event.result.metrics["base_loads"] for event in quiet.values()] == [1, 0, 0]
    assert [failure.kind for failure in retried["a"]] == ["died"]
    expected, found = quiet["a"].result, disturbed["a"].result
    assert found.metrics["test.loss"] == pytest.approx(expected.metrics["test.loss"], abs=1e-6)
    assert found.weights_digest == expected.weights_digest
