"""What users ask a running driver for: through tags of its run, into the queue of its pool, and back."""

from __future__ import annotations

import io
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.pool import job_requests
from orchestrator.pool.job_requests import SKIPPED, apply_request
from orchestrator.pool.unit_queue import QueuedUnit
from orchestrator.pool.work_units import JobRequest, WorkUnit
from orchestrator.progress import requesting
from orchestrator.recording import request_inbox
from orchestrator.recording.request_inbox import RequestInbox
from orchestrator.registry.run_requests import RunRequest, requests_in
from ttmoe.errors import InputError, WorkFailedError
from workers.failure import Failure

UNIT = WorkUnit(print, {"a": 1, "b": 2}, Path("log.txt"))
CODE = Failure("code", "ValueError", "no")


class Tags:
    """The tags of one run, as a registry that may be unavailable."""

    def __init__(self, status="RUNNING"):
        self.tags, self.status, self.broken = {}, status, 0

    def tag_run(self, run_id, tags):
        if self.broken:
            self.broken -= 1
            raise ConnectionError
        self.tags |= tags

    def run_record(self, run_id):
        return SimpleNamespace(tags=dict(self.tags), status=self.status, run_id=run_id, name="run 1")

    newest_run = run_record

    def planned_work(self, run_id):
        return {"experts": ["a", "b"]}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(request_inbox, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(requesting, "_POLL_SECONDS", 0.01)


def apply(action, key, queue=(), workers=(), failures=None):
    queue, answers = list(queue), []
    failures = defaultdict(list, failures or {})
    events = list(apply_request(JobRequest(action, key, answers.append), [UNIT], queue, workers, failures))
    return queue, events, answers, failures


def test_a_job_that_waits_is_left_out_and_its_unit_keeps_the_others():
    queue, (event,), answers, _ = apply("skip", "a", [QueuedUnit(UNIT, 7.0)])
    assert [(dict(each.unit.jobs), each.not_before) for each in queue] == [({"b": 2}, 7.0)]
    assert (event.key, event.failure, event.done) == ("a", SKIPPED, True)
    assert answers == ["is left out"]


def test_a_job_that_failed_is_queued_again_with_all_its_attempts():
    queue, (event,), answers, failures = apply("retry", "a", failures={"a": [CODE]})
    assert [dict(each.unit.jobs) for each in queue] == [{"a": 1}]
    assert (event.failure, event.retry is not None, event.done) == (None, True, False)
    assert failures["a"] == []
    assert answers == ["is tried again"]


def test_a_job_that_waits_for_its_retry_need_not_wait():
    queue, events, _, _ = apply("retry", "a", [QueuedUnit(UNIT, float("inf"))])
    assert queue[0].not_before < float("inf")
    assert not events


@pytest.mark.parametrize(("action", "cause"), [("skip", "skipped"), ("retry", "stopped")])
def test_a_unit_that_runs_is_asked_to_stop(action, cause, monkeypatch):
    asked = []
    monkeypatch.setattr(job_requests, "request_stop", lambda worker, causes: asked.append(causes))
    apply(action, "b", workers=[SimpleNamespace(unit=None), SimpleNamespace(unit=UNIT)])
    assert [{key: failure.kind for key, failure in causes.items()} for causes in asked] == [{"b": cause}]


@pytest.mark.parametrize("action", ["skip", "retry"])
def test_a_job_that_has_ended_well_or_is_unknown_stays(action):
    queue, events, answers, _ = apply(action, "z")
    assert (queue, events) == ([], [])
    assert answers == ["has no expert that trains, waits or has failed in this run"]


def test_a_request_arrives_once_and_its_answer_outlives_an_outage():
    store, taken = Tags(), []
    request = RunRequest.new("skip", "a")
    with RequestInbox(store, "run") as inbox:
        store.tag_run("run", request.as_tag() | {"request.odd": "no JSON", "request.odder": '{"action": "erase"}'})
        ends = time.monotonic() + 20
        while not requests_in(store.tags)[0].answer and time.monotonic() < ends:
            for job in inbox.take():
                taken.append((job.action, job.key))
                time.sleep(0.2)  # it is read again before it is answered
                store.broken = 3
                job.answer("is left out")
            time.sleep(0.01)
    assert taken == [("skip", "a")]
    assert requests_in(store.tags) == [request.answered("a is left out")]


def test_a_request_after_the_stage_is_answered_as_too_late():
    store = Tags()
    with RequestInbox(store, "run") as inbox:
        store.tag_run("run", RunRequest.new("retry", "a").as_tag())
    inbox._thread.join(20)
    assert "trains no experts any more" in requests_in(store.tags)[0].answer


def ask(store, task, monkeypatch):
    monkeypatch.setattr(requesting, "open_library", lambda address, library: (store, "lib"))
    out = io.StringIO()
    address = StoreAddress(Path(), "sqlite:///x", "--root")
    requesting.request_for_task(address, None, "skip", task, Console(file=out))
    return out.getvalue()


def test_the_command_prints_the_answer(monkeypatch):
    store = Tags()

    def driver():
        while not (found := requests_in(store.tags)):
            time.sleep(0.01)
        store.tag_run("run", found[0].answered("a is left out").as_tag())

    threading.Thread(target=driver, daemon=True).start()
    assert ask(store, "a", monkeypatch) == "a is left out\n"


def test_the_command_refuses_what_no_run_can_do(monkeypatch):
    with pytest.raises(InputError, match="does not train 'z'") as caught:
        ask(Tags(), "z", monkeypatch)
    assert caught.value.fix == "tasks that it trains: a, b"
    with pytest.raises(InputError, match="no run is active"):
        ask(Tags("FINISHED"), "a", monkeypatch)
    monkeypatch.setattr(requesting, "_WAIT_SECONDS", 0.05)
    with pytest.raises(WorkFailedError, match="the run gave no answer"):
        ask(Tags(), "a", monkeypatch)
