"""Units on a real local Ray: apart from one another, heard while they run, and gone in the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from itertools import pairwise

import pytest
import tiny

from orchestrator.jobs import LOG, Unit, run_units
from ttmoe.errors import InputError
from workers.progress import Progress

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ray():
    """One session for the module; whatever it started must have ended after it."""
    from cluster.local import ray_session

    mark = f"jobs-{uuid.uuid4()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTMOE_TEST", mark)
        with ray_session():
            yield mark
    assert tiny.left_running(mark) == []


def run(units):
    """The units' last news, and all progress, by key."""
    last, progress = {}, {unit.key: [] for unit in units}
    for news in run_units(units):
        if news is not None:
            assert not (news.progress and news.key in last), "progress after the end"
            progress[news.key] += news.progress
            if news.done:
                assert news.key not in last
                last[news.key] = news
    assert set(last) == set(progress)
    return last, progress


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


def test_units_run_at_the_same_time_in_processes_of_their_own(ray, tmp_path):
    (tmp_path / "met").mkdir()
    meet = waiter(tmp_path / "met", 2)
    last, _ = run([Unit(name, meet, (name,), tmp_path / name, cpus=0.5) for name in ("a", "b")])
    pids = {news.result for news in last.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_more_units_than_room_are_run_in_turn(ray, tmp_path):
    def work(number, report):
        time.sleep(0.05)
        return number * number

    units = [Unit(str(i), work, (i,), tmp_path / str(i), cpus=1) for i in range(7)]
    last, _ = run(units)
    assert {key: news.result for key, news in last.items()} == {str(i): i * i for i in range(7)}


def test_no_more_units_than_asked_for_run_at_once(ray, tmp_path):
    def work(report):
        began = time.time()
        time.sleep(0.3)
        return began, time.time()

    units = [Unit(str(i), work, (), tmp_path / str(i), cpus=0.1) for i in range(4)]
    spans = sorted(news.result for news in run_units(units, at_once=1) if news and news.done)
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
    for news in run_units([Unit("a", work, (), tmp_path / "a")]):
        if news and news.progress:
            (tmp_path / "heard").touch()
            heard += [(time.time(), when, progress) for when, progress in news.progress]
        if news and news.done:
            result = news.result
    assert [progress.step for _, _, progress in heard] == list(range(1, result + 1))
    assert all(said <= came + 0.01 for came, said, _ in heard)
    assert heard[0][2] == Progress("training", 1, 1200, {"loss": 1.0})


def test_options_are_handed_on(ray, tmp_path):
    def work(one, report, *, threads):
        return one, threads

    last, _ = run([Unit("a", work, (1,), tmp_path / "a", options=(("threads", 2),))])
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

    units = [Unit(name, run_, (), tmp_path / name, cpus=0.5) for name, run_ in
             (("good", good), ("wrong", wrong), ("gone", gone))]  # fmt: skip
    last, progress = run(units)
    assert (last["good"].result, last["good"].error) == ("good", None)
    error = last["wrong"].error
    assert isinstance(error, InputError)
    assert (error.what, error.where, error.fix) == ("the data is wrong", "tasks.x", "correct it")
    assert [p.step for _, p in progress["wrong"]] == [3]
    assert type(last["gone"].error).__name__ == "WorkerCrashedError"
    logs = {name: (tmp_path / name / LOG).read_text() for name in last}
    assert logs["good"] == "all is well\n"
    assert logs["wrong"].startswith("about to fail\n")
    assert "InputError: tasks.x: the data is wrong" in logs["wrong"]
    assert "in wrong" in logs["wrong"]  # a traceback, down to the line
    assert logs["gone"] == "about to go\n"


def test_an_error_that_cannot_travel_is_still_told(ray, tmp_path):
    def work(report):
        class Held(Exception):
            def __reduce__(self):
                raise TypeError("not to be pickled")

        raise Held("something broke")

    last, _ = run([Unit("a", work, (), tmp_path / "a")])
    assert isinstance(last["a"].error, Exception)
    assert "something broke" in (tmp_path / "a" / LOG).read_text()


def test_a_log_holds_what_its_unit_and_its_children_print_and_no_more(ray, tmp_path):
    def work(word, report):
        print(f"{word} by print")
        print(f"{word} on stderr", file=sys.stderr)
        os.write(1, f"{word} by a library\n".encode())
        subprocess.run(["echo", f"{word} by a child"], check=True)

    for word in ("first", "second"):  # the same process serves both
        run([Unit(word, work, (word,), tmp_path / word)])
    for word in ("first", "second"):
        lines = (tmp_path / word / LOG).read_text().splitlines()
        assert sorted(lines) == [f"{word} {how}" for how in ("by a child", "by a library", "by print", "on stderr")]


def test_a_second_try_adds_to_the_log(ray, tmp_path):
    def work(word, report):
        print(word)

    for word in ("one", "two"):
        run([Unit("a", work, (word,), tmp_path / "a")])
    assert (tmp_path / "a" / LOG).read_text() == "one\ntwo\n"


def test_whoever_stops_listening_stops_the_units(ray, tmp_path):
    def work(report):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(300)

    import psutil

    news = run_units([Unit("a", work, (), tmp_path / "a")])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        next(news)
    news.close()
    pid = int((tmp_path / "pid").read_text())
    assert tiny.wait_for(lambda: not psutil.pid_exists(pid), 20)
