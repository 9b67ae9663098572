"""The crew on a real local Ray: units apart from one another, heard while they run, replaced when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from itertools import pairwise

import pytest
import tiny

from orchestrator.config.schema import FailureSettings
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.failure_policy import Retry
from orchestrator.pool.work_units import LOG_FILE, WorkUnit
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import InfeasibleError, InputError
from workers.failure import Failure
from workers.progress import Progress

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ray():
    """One session for the module; whatever it started must have ended after it."""
    from cluster.local import ray_session

    mark = f"crew-{uuid.uuid4()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTMOE_TEST", mark)
        with ray_session():
            yield mark
    assert tiny.left_running(mark) == []


def crew(cpus=1.0, at_most=None, stall=900.0, **limits):
    return WorkerPool(JobResources(cpus), FailureSettings(**limits), at_most, stall=stall)


def run(units, smaller=None, on=None, **settings):
    """The jobs' last news, all progress, and the failures that were tried again, by key."""
    last, progress, tried = {}, defaultdict(list), defaultdict(list)
    with on or crew(**settings) as runner:
        for news in runner.run(units, smaller):
            if news is None:
                continue
            assert news.key not in last, "news after the end"
            progress[news.key] += news.progress
            if news.again:
                tried[news.key].append(news)
            if news.done:
                last[news.key] = news
    assert set(last) == {key for unit in units for key in unit.jobs}
    return last, progress, tried


# Functions inside functions travel by value: the workers cannot import this file.
def waiter(folder, others):
    """Ends when it has met ``others`` units that run at the same time."""

    def meet(name, report):
        (folder / name).touch()
        end = time.monotonic() + 60
        while len(list(folder.iterdir())) < others:
            assert time.monotonic() < end, "alone for a minute"
            time.sleep(0.05)
        return os.getpid()

    return meet


def once(folder, end):
    """Calls ``end`` the first time it runs, and ends well the second."""

    def work(report):
        if not (folder / "was here").exists():
            (folder / "was here").touch()
            end()
        return "done"

    return work


def test_units_run_at_the_same_time_in_processes_of_their_own(ray, tmp_path):
    (tmp_path / "met").mkdir()
    meet = waiter(tmp_path / "met", 2)
    last, _, _ = run([WorkUnit.of(name, meet, (name,), tmp_path / name) for name in ("a", "b")], cpus=0.5)
    pids = {news.result for news in last.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_processes_are_kept_from_unit_to_unit_and_from_stage_to_stage(ray, tmp_path):
    def work(number, report):
        time.sleep(0.02)
        return number * number, os.getpid()

    pids = set()
    with crew() as runner:
        for stage in range(2):
            units = [WorkUnit.of(str(i), work, (i,), tmp_path / f"{stage} {i}") for i in range(7)]
            last = {news.key: news for news in runner.run(units) if news and news.done}
            assert {key: news.result[0] for key, news in last.items()} == {str(i): i * i for i in range(7)}
            pids |= {news.result[1] for news in last.values()}
        assert runner.started == len(pids) <= os.cpu_count()


def test_what_fits_on_no_node_is_refused_at_once(ray):
    with pytest.raises(InfeasibleError, match=r"asks for 1 CPUs, 0 GPUs, 1000000\.0 GB"):
        WorkerPool(JobResources(1, 0, 10**15), FailureSettings()).__enter__()


def test_no_more_units_than_asked_for_run_at_once(ray, tmp_path):
    def work(report):
        began = time.time()
        time.sleep(0.3)
        return began, time.time()

    last, _, _ = run([WorkUnit.of(str(i), work, (), tmp_path / str(i)) for i in range(4)], cpus=0.1, at_most=1)
    spans = sorted(news.result for news in last.values())
    assert len(spans) == 4
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))


def test_progress_comes_while_it_runs_in_order_and_whole(ray, tmp_path):
    """The unit goes on until the driver has heard of it: it would never end if reports came only at the end."""

    def work(report):
        for step in range(1, 1201):
            report(Progress("training", step, 1200, {"loss": 1 / step}))
            if (tmp_path / "heard").exists():
                return step
            time.sleep(0.05)

    heard, result = [], None
    with crew() as runner:
        for news in runner.run([WorkUnit.of("a", work, (), tmp_path / "a")]):
            if news and news.progress:
                (tmp_path / "heard").touch()
                heard += [(time.time(), when, progress) for when, progress in news.progress]
            if news and news.done:
                result = news.result
    assert [progress.step for _, _, progress in heard] == list(range(1, result + 1))
    assert all(said <= came + 0.01 for came, said, _ in heard)
    assert heard[0][2] == Progress("training", 1, 1200, {"loss": 1.0})


def test_a_unit_of_several_jobs_answers_and_reports_for_each(ray, tmp_path):
    def work(jobs, report):
        for key in jobs:
            report(Progress("training", 1, 2, key=key))
        return {key: Failure("code", "ValueError", "no") if job < 0 else job + 1 for key, job in jobs.items()}

    last, progress, _ = run([WorkUnit(work, {"a": 1, "b": -1, "c": 3}, tmp_path / LOG_FILE)])
    assert {key: news.result for key, news in last.items()} == {"a": 2, "b": None, "c": 4}
    assert last["b"].failure.message == "no"
    assert {key: len(each) for key, each in progress.items()} == {"a": 1, "b": 1, "c": 1}


def test_options_are_handed_on(ray, tmp_path):
    def work(one, report, *, threads):
        return one, threads

    last, _, _ = run([WorkUnit.of("a", work, (1,), tmp_path / "a", threads=2)])
    assert last["a"].result == (1, 2)


def test_one_that_fails_leaves_the_others_alone(ray, tmp_path):
    def good(report):
        print("all is well")
        time.sleep(1.5)
        return "good"

    def wrong(report):
        print("about to fail")
        report(Progress("training", 3, 9))
        raise InputError("the data is wrong", where="tasks.x", fix="correct it")

    def gone(report):
        print("about to go", flush=True)
        os._exit(7)

    units = [WorkUnit.of(name, work, (), tmp_path / name) for name, work in
             (("good", good), ("wrong", wrong), ("gone", gone))]  # fmt: skip
    last, progress, tried = run(units, cpus=0.5, retries=1)
    assert (last["good"].result, last["good"].failure) == ("good", None)
    failure = last["wrong"].failure
    assert (failure.kind, failure.error) == ("code", "InputError")
    assert failure.message == "tasks.x: the data is wrong\n  correct it"
    assert "in wrong" in failure.trace  # down to the line
    assert [p.step for _, p in progress["wrong"]] == [3]
    assert last["gone"].failure.kind == "died"
    assert (last["gone"].attempt, last["wrong"].attempt) == (2, 1)
    assert [news.again for news in tried["gone"]] == [Retry(1.0)]
    assert not tried["wrong"]
    logs = {name: (tmp_path / name / LOG_FILE).read_text() for name in last}
    assert logs["good"] == "all is well\n"
    assert logs["wrong"].startswith("about to fail\n")
    assert "InputError: tasks.x: the data is wrong" in logs["wrong"]
    assert logs["gone"] == "about to go\n" * 2


def test_a_killed_process_is_replaced_and_its_unit_done_again(ray, tmp_path):
    work = once(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
    last, _, tried = run([WorkUnit.of("a", work, (), tmp_path / "a")])
    assert (last["a"].result, last["a"].attempt) == ("done", 2)
    assert tried["a"][0].action == "tried again in 1 s: its process died"


def test_a_stalled_one_is_stopped_and_done_again(ray, tmp_path):
    work = once(tmp_path, lambda: time.sleep(300))
    began = time.monotonic()
    last, _, tried = run([WorkUnit.of("a", work, (), tmp_path / "a")], stall=3.0)
    assert last["a"].result == "done"
    assert [news.failure.kind for news in tried["a"]] == ["stalled"]
    assert time.monotonic() - began < 60


def test_one_that_reports_does_not_stall(ray, tmp_path):
    def work(report):
        for step in range(12):
            report(Progress("training", step))
            time.sleep(0.5)
        return "done"

    last, _, tried = run([WorkUnit.of("a", work, (), tmp_path / "a")], stall=3.0)
    assert last["a"].result == "done"
    assert not tried


def test_a_full_memory_is_tried_once_more_in_less(ray, tmp_path):
    def work(jobs, report):
        return {key: Failure("memory", "OutOfMemoryError", "full") if rows > 8 else rows for key, rows in jobs.items()}

    last, _, tried = run(
        [WorkUnit(work, {"fits": 4, "halved": 16, "never": 64}, tmp_path / LOG_FILE)], lambda rows: rows // 2
    )
    assert {key: news.result for key, news in last.items()} == {"fits": 4, "halved": 8, "never": None}
    assert last["never"].failure.kind == "memory"
    assert set(tried) == {"halved", "never"}


def test_a_result_that_cannot_travel_is_told(ray, tmp_path):
    def work(report):
        import threading

        return threading.Lock()

    last, _, _ = run([WorkUnit.of("a", work, (), tmp_path / "a")])
    assert last["a"].failure.kind == "code"
    assert "pickle" in last["a"].failure.message


def test_a_log_that_cannot_be_written_is_told(ray, tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    last, _, _ = run([WorkUnit.of("a", print, (), tmp_path / "a")], retries=0)
    assert last["a"].failure.error in ("FileExistsError", "NotADirectoryError")


def test_a_log_holds_what_its_unit_and_its_children_print_and_no_more(ray, tmp_path):
    def work(word, report):
        print(f"{word} by print")
        print(f"{word} on stderr", file=sys.stderr)
        os.write(1, f"{word} by a library\n".encode())
        subprocess.run(["echo", f"{word} by a child"], check=True)

    # one after the other in one process
    run([WorkUnit.of(word, work, (word,), tmp_path / word) for word in ("first", "second")], at_most=1)
    for word in ("first", "second"):
        lines = (tmp_path / word / LOG_FILE).read_text().splitlines()
        assert sorted(lines) == [f"{word} {how}" for how in ("by a child", "by a library", "by print", "on stderr")]


def test_whoever_stops_listening_stops_the_units(ray, tmp_path):
    def work(report):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(300)

    import psutil

    with crew() as runner:
        news = runner.run([WorkUnit.of("a", work, (), tmp_path / "a")])
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            next(news)
        news.close()
        pid = int((tmp_path / "pid").read_text())
        assert tiny.wait_for(lambda: not psutil.pid_exists(pid), 20)
        # and the crew goes on
        last = {
            each.key: each for each in runner.run([WorkUnit.of("b", pow, (2, 3), tmp_path / "b", mod=None)]) if each
        }
        assert last["b"].failure.kind == "code"  # pow takes no report
