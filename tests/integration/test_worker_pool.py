"""The worker pool on a real local Ray: isolation of units, progress, retries, replacement of dead workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise

import pytest
import tiny
from ray_cluster import own_session

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.device_record import DeviceRecord
from orchestrator.pool.failure_policy import Retry
from orchestrator.pool.work_units import LOG_FILE, JobRequest, WorkUnit
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import InfeasibleError, InputError
from workers.failure import Failure
from workers.progress import Progress

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ray():
    """One Ray session for the module."""
    with own_session("pool") as mark:
        yield mark


def make_pool(cpus=1.0, max_workers=None):
    return WorkerPool(JobResources(cpus), FailureSettings(), max_workers)


@pytest.fixture(scope="module")
def shared(ray):
    """A pool for the tests that need none of their own: the start of a worker takes longer than what they check."""
    with make_pool(cpus=0.5) as pool:
        yield pool


@pytest.fixture
def pool(shared, monkeypatch):
    """The shared pool, of at most two workers; what a test sets of it is undone."""
    monkeypatch.setattr(shared, "max_workers", 2)
    return shared


@pytest.fixture
def run(pool, monkeypatch):
    """Return a function that runs units: each job's last event, its progress, and its retried failures, by key."""

    def run(units, reduce_memory=None, max_workers=2, stall_seconds=900.0, **limits):
        monkeypatch.setattr(pool, "max_workers", max_workers)
        monkeypatch.setattr(pool, "stall_seconds", stall_seconds)
        monkeypatch.setattr(pool, "limits", FailureSettings(**limits))
        monkeypatch.setattr(pool, "devices", DeviceRecord())  # which knows jobs by their keys
        last, progress, retried = {}, defaultdict(list), defaultdict(list)
        for event in pool.run(units, reduce_memory):
            if event is None:
                continue
            assert event.key not in last, "event after the last one"
            progress[event.key] += event.progress
            if event.retry:
                retried[event.key].append(event)
            if event.done:
                last[event.key] = event
        assert set(last) == {key for unit in units for key in unit.jobs}
        return last, progress, retried

    return run


# Nested functions are pickled by value: the workers cannot import this file.
def waiter(folder, others):
    """Return a job that ends when ``others`` units run at the same time."""

    def meet(name, report):
        (folder / name).touch()
        end = time.monotonic() + 60
        while len(list(folder.iterdir())) < others:
            assert time.monotonic() < end, "alone for a minute"
            time.sleep(0.05)
        return os.getpid()

    return meet


def once(folder, end):
    """Return a job that calls ``end`` in its first run, and succeeds in its second."""

    def work(report):
        if not (folder / "was here").exists():
            (folder / "was here").touch()
            end()
        return "done"

    return work


def test_the_time_of_workers_with_and_without_work_is_counted(ray, tmp_path):
    """In two calls, on one worker: nothing is counted twice, and the time between the calls is nobody's."""
    work = lambda report: time.sleep(0.3)  # noqa: E731
    with make_pool(max_workers=1) as pool:
        walls = []
        for number in range(2):
            start = time.monotonic()
            list(pool.run([WorkUnit.of(str(i), work, (), tmp_path / f"{number} {i}") for i in range(2)]))
            walls.append(time.monotonic() - start)
            time.sleep(1)
        assert pool.busy_seconds >= 4 * 0.3
        assert pool.busy_seconds + pool.waiting_seconds == pytest.approx(sum(walls), abs=0.5)
        assert pool.waiting_seconds > 0


def test_workers_are_reused_between_units_and_between_runs(ray, tmp_path):
    def work(value, report):
        time.sleep(0.02)
        return value * value, os.getpid()

    pids = set()
    with make_pool() as pool:
        for number in range(2):
            units = [WorkUnit.of(str(i), work, (i,), tmp_path / f"{number} {i}") for i in range(7)]
            last = {event.key: event for event in pool.run(units) if event and event.done}
            assert {key: event.result[0] for key, event in last.items()} == {str(i): i * i for i in range(7)}
            pids |= {event.result[1] for event in last.values()}
        assert len(pids) <= pool.started <= os.cpu_count()  # beside other loads one may do all units


def test_a_job_that_fits_no_node_is_refused_at_once(ray):
    with pytest.raises(InfeasibleError, match=r"requires 1 CPUs, 0 GPUs, 1\.0 PB"):
        WorkerPool(JobResources(1, 0, 10**15), FailureSettings()).__enter__()


def test_d19_a_job_that_needs_more_than_the_workers_reserved_gets_one_that_reserves_it(ray, tmp_path):
    """And afterwards others run with what they need: the cores that it had are free."""

    def reserved(report, threads=0):
        import ray

        return os.getpid(), threads, ray.get_runtime_context().get_assigned_resources()

    units = [WorkUnit.of(name, reserved, (), tmp_path / name) for name in ("a", "b")]
    alone = WorkUnit(units[0].run, units[0].jobs, units[0].log, all_cores=True)
    with make_pool(cpus=0.5, max_workers=2) as pool:
        first, large, again = (
            [event.result for event in pool.run(work, None, resources) if event and event.done]
            for work, resources in ((units, None), ([alone], JobResources(1, 0, 10**8)), (units, None))
        )
    assert {found["CPU"] for _, _, found in first + again} == {0.5}
    ((pid, threads, found),) = large
    assert (threads, found["CPU"], found["memory"]) == (1, 1.0, 10**8)
    assert pid not in {pid for pid, *_ in first + again}


def test_jobs_are_stopped_left_out_and_tried_again_on_request(ray, tmp_path):
    """One process trains a, b and c together until it is asked to stop; then the others go on without a, in it."""
    stops = "stopped"

    def work(jobs, report):
        from workers.stopping import raise_if_stopped

        first = next(iter(jobs))
        runs = tmp_path / f"runs {first}"
        with runs.open("a") as file:
            file.write(f"{os.getpid()} {' '.join(jobs)}\n")
        if len(jobs) == 1:
            fails = first == "c" and not (tmp_path / "failed").exists()
            (tmp_path / "failed").touch() if fails else None
            return {first: Failure("code", "ValueError", "no") if fails else "done"}
        for step in range(1200):
            report(Progress("training", step, key=first))
            raise_if_stopped(lambda: (tmp_path / stops).touch())
            time.sleep(0.05)

    answers, asked, last = [], [], {}

    def requests():
        # a while it trains, c when it has failed
        wanted = [("skip", "a")] * ("a" in progress) + [("retry", "c")] * ("c" in last)
        new = [each for each in wanted if each not in asked]
        asked.extend(new)
        return [JobRequest(action, key, answers.append) for action, key in new]

    progress = set()
    units = [WorkUnit(work, dict.fromkeys(keys), tmp_path / keys) for keys in ("abc", "d")]
    with make_pool(max_workers=1) as pool:
        for event in pool.run(units, requests=requests):
            if event:
                progress |= {event.key} if event.progress else set()
                last |= {event.key: event} if event.done else {}
    assert (tmp_path / stops).exists()
    process, *_ = (tmp_path / "runs a").read_text().split()
    assert (tmp_path / "runs b").read_text() == f"{process} b\n"  # a unit that stops in order leaves its process
    assert {key: event.result for key, event in last.items()} == {"a": None, "b": "done", "c": "done", "d": "done"}
    assert last["a"].failure.kind == "skipped"
    assert answers == ["is stopped and left out", "is tried again"]


# From here on the tests use the shared pool, whose workers reserve cores to the end.
def test_units_run_in_parallel_in_separate_processes(run, tmp_path):
    (tmp_path / "met").mkdir()
    meet = waiter(tmp_path / "met", 2)
    last, _, _ = run([WorkUnit.of(name, meet, (name,), tmp_path / name) for name in ("a", "b")])
    pids = {event.result for event in last.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_no_more_than_max_workers_units_run_at_once(run, tmp_path):
    def work(report):
        began = time.time()
        time.sleep(0.3)
        return began, time.time()

    last, _, _ = run([WorkUnit.of(str(i), work, (), tmp_path / str(i)) for i in range(4)], max_workers=1)
    spans = sorted(event.result for event in last.values())
    assert len(spans) == 4
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))


def test_progress_arrives_while_the_unit_runs_complete_and_in_order(pool, tmp_path):
    """The unit runs until the driver has received a report: it would not end if reports came only at the end."""

    def work(report):
        for step in range(1, 1201):
            report(Progress("training", step, 1200, {"loss": 1 / step}))
            if (tmp_path / "received").exists():
                return step
            time.sleep(0.05)

    received, result = [], None
    for event in pool.run([WorkUnit.of("a", work, (), tmp_path / "a")]):
        if event and event.progress:
            (tmp_path / "received").touch()
            received += [(time.time(), when, progress) for when, progress in event.progress]
        if event and event.done:
            result = event.result
    assert [progress.step for _, _, progress in received] == list(range(1, result + 1))
    assert all(sent <= arrived + 0.01 for arrived, sent, _ in received)
    assert received[0][2] == Progress("training", 1, 1200, {"loss": 1.0})


def test_a_unit_of_several_jobs_has_results_and_progress_for_each(run, tmp_path):
    def work(jobs, report):
        for key in jobs:
            report(Progress("training", 1, 2, key=key))
        return {key: Failure("code", "ValueError", "no") if job < 0 else job + 1 for key, job in jobs.items()}

    last, progress, _ = run([WorkUnit(work, {"a": 1, "b": -1, "c": 3}, tmp_path / LOG_FILE)])
    assert {key: event.result for key, event in last.items()} == {"a": 2, "b": None, "c": 4}
    assert last["b"].failure.message == "no"
    assert {key: len(reports) for key, reports in progress.items()} == {"a": 1, "b": 1, "c": 1}


def test_options_are_passed_to_the_job(run, tmp_path):
    def work(number, report, *, threads):
        return number, threads

    last, _, _ = run([WorkUnit.of("a", work, (1,), tmp_path / "a", threads=2)])
    assert last["a"].result == (1, 2)


def test_a_failed_job_does_not_affect_other_jobs(run, tmp_path):
    def good(report):
        print("all is well")
        time.sleep(1.5)
        return "good"

    def wrong(report):
        print("about to fail")
        report(Progress("training", 3, 9))
        raise InputError("the data is wrong", where="tasks.x", fix="correct it")

    def dies(report):
        print("about to die", flush=True)
        os._exit(7)

    units = [WorkUnit.of(name, work, (), tmp_path / name) for name, work in
             (("good", good), ("wrong", wrong), ("dies", dies))]  # fmt: skip
    last, progress, retried = run(units, retries=1)
    assert (last["good"].result, last["good"].failure) == ("good", None)
    failure = last["wrong"].failure
    assert (failure.kind, failure.error) == ("code", "InputError")
    assert failure.message == "tasks.x: the data is wrong\n  correct it"
    assert "in wrong" in failure.trace  # the traceback names the function
    assert [report.step for _, report in progress["wrong"]] == [3]
    assert last["dies"].failure.kind == "died"
    assert (last["dies"].attempt, last["wrong"].attempt) == (2, 1)
    assert [event.retry for event in retried["dies"]] == [Retry(1.0)]
    assert not retried["wrong"]
    logs = {name: (tmp_path / name / LOG_FILE).read_text() for name in last}
    assert logs["good"] == "all is well\n"
    assert logs["wrong"].startswith("about to fail\n")
    assert "InputError: tasks.x: the data is wrong" in logs["wrong"]
    assert logs["dies"] == "about to die\n" * 2


def test_a_killed_worker_is_replaced_and_its_unit_retried(run, tmp_path):
    work = once(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
    last, _, retried = run([WorkUnit.of("a", work, (), tmp_path / "a")])
    assert (last["a"].result, last["a"].attempt) == ("done", 2)
    assert retried["a"][0].action == "retried in 1 s: worker process died"


def test_a_stalled_unit_is_stopped_and_retried(run, tmp_path):
    work = once(tmp_path, lambda: time.sleep(300))
    began = time.monotonic()
    last, _, retried = run([WorkUnit.of("a", work, (), tmp_path / "a")], stall_seconds=3.0)
    assert last["a"].result == "done"
    assert [event.failure.kind for event in retried["a"]] == ["stalled"]
    assert time.monotonic() - began < 60


def test_a_unit_that_reports_is_not_stalled(run, tmp_path):
    def work(report):
        for step in range(8):
            report(Progress("training", step))
            time.sleep(0.5)
        return "done"

    last, _, retried = run([WorkUnit.of("a", work, (), tmp_path / "a")], stall_seconds=3.0)
    assert last["a"].result == "done"
    assert not retried


def test_out_of_memory_is_retried_once_with_less_memory(run, tmp_path):
    def work(jobs, report):
        return {key: Failure("memory", "OutOfMemoryError", "full") if rows > 8 else rows for key, rows in jobs.items()}

    last, _, retried = run(
        [WorkUnit(work, {"fits": 4, "halved": 16, "never": 64}, tmp_path / LOG_FILE)], lambda rows: rows // 2
    )
    assert {key: event.result for key, event in last.items()} == {"fits": 4, "halved": 8, "never": None}
    assert last["never"].failure.kind == "memory"
    assert set(retried) == {"halved", "never"}


def test_a_result_that_cannot_be_pickled_is_a_failure(run, tmp_path):
    def work(report):
        import threading

        return threading.Lock()

    last, _, _ = run([WorkUnit.of("a", work, (), tmp_path / "a")])
    assert last["a"].failure.kind == "code"
    assert "pickle" in last["a"].failure.message


def test_a_log_that_cannot_be_written_is_a_failure(run, tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    last, _, _ = run([WorkUnit.of("a", print, (), tmp_path / "a")], retries=0)
    assert last["a"].failure.error in ("FileExistsError", "NotADirectoryError")


def test_a_log_contains_the_output_of_its_unit_and_child_processes_only(run, tmp_path):
    def work(word, report):
        print(f"{word} by print")
        print(f"{word} on stderr", file=sys.stderr)
        os.write(1, f"{word} by a library\n".encode())
        subprocess.run(["echo", f"{word} by a child"], check=True)

    # one after the other in one process
    run([WorkUnit.of(word, work, (word,), tmp_path / word) for word in ("first", "second")], max_workers=1)
    for word in ("first", "second"):
        lines = (tmp_path / word / LOG_FILE).read_text().splitlines()
        assert sorted(lines) == [f"{word} {how}" for how in ("by a child", "by a library", "by print", "on stderr")]


def test_closing_the_generator_stops_its_units(pool, tmp_path, monkeypatch):
    def work(report):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(300)

    import psutil

    monkeypatch.setattr(pool, "stop_seconds", 0.5)  # the unit does not ask whether it is to stop
    events = pool.run([WorkUnit.of("a", work, (), tmp_path / "a")])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        next(events)
    events.close()
    pid = int((tmp_path / "pid").read_text())
    assert tiny.wait_for(lambda: not psutil.pid_exists(pid), 20)
    # and the pool can still be used
    units = [WorkUnit.of("b", pow, (2, 3), tmp_path / "b", mod=None)]
    last = {event.key: event for event in pool.run(units) if event}
    assert last["b"].failure.kind == "code"  # pow takes no report
