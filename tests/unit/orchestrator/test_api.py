"""The functions for Python: what they hand on, and that a process is left as it was. No Ray starts."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import pytest

from cluster import embedded, local
from orchestrator import api
from orchestrator.predict.request import PredictRequest
from orchestrator.run import driver
from orchestrator.run.run_outcome import ExpertOutcome, RunInProgress
from ttmoe.errors import InputError, PartFailedError
from workers.failure import Failure


def handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def test_a_part_failed_run_raises_what_the_command_prints_with_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_and_run(loaded: Any, made: RunInProgress, console: Any) -> None:
        console.print("progress")
        made.stage_result.failed["trec"] = Failure("code", "ValueError", "x")
        raise PartFailedError("1 of 4 experts failed")

    monkeypatch.setattr(driver, "_plan_and_run", plan_and_run)
    before = handlers()
    with pytest.raises(PartFailedError) as caught:
        api.run("quickstart", "train.steps=7")  # one override needs no list
    assert caught.value.outcome.experts["trec"] == ExpertOutcome("failed", error="ValueError: x")
    assert caught.value.outcome.counts == {"failed": 1, "missing": 3}
    assert handlers() == before


def test_nothing_is_printed_without_a_console(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(driver, "_plan_and_run", lambda loaded, made, console: console.print("progress"))
    assert api.run("quickstart", ["on_end=echo told; exit 1"]).counts == {"missing": 4}
    assert capfd.readouterr() == ("", "")


def test_a_text_alone_is_one_row_and_wrong_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def answer_rows(request: PredictRequest, rows: Any, messages: Any) -> list:
        seen.append((rows, request.columns.choices))
        return []

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.predict.texts.answer_rows", answer_rows)
        for rows in ("one text", {"text": "a"}, iter(["a", "b"])):
            api.predict(rows, choices="options")
    assert seen == [(["one text"], ("options",)), ([{"text": "a"}], ("options",)), (["a", "b"], ("options",))]
    for rows, message in (
        (["a", " "], "text 2 is empty"),
        ([{"text": "a"}, {"txt": "b"}], "row 2: .*no column 'text'"),
    ):
        with pytest.raises(InputError, match=message):
            api.predict(rows)
    assert api.predict([]) == []


@pytest.mark.parametrize("in_thread", [False, True])
def test_ray_leaves_no_handler_and_says_nothing_of_threads(
    in_thread: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    def init(**settings: Any) -> None:  # as Ray's own
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: None)
        else:
            logging.getLogger("ray._private.worker").warning("SIGTERM handler is not set because ...")
        logging.getLogger("ray._private.worker").warning("something else")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(
        ray, "shutdown", lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL) if not in_thread else None
    )
    monkeypatch.setattr(embedded, "_PROCESSES", ())
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)
    before = handlers()

    def session() -> None:
        with local.ray_session():
            assert handlers() == before

    if in_thread:
        errors: list[BaseException] = []
        monkeypatch.setattr(threading, "excepthook", lambda error: errors.append(error.exc_value))
        thread = threading.Thread(target=session)
        thread.start()
        thread.join()
        assert errors == []
    else:
        session()
    assert handlers() == before
    assert set(caplog.messages) == {"something else"}


def test_a_folder_that_ray_cannot_remove_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    def shutdown() -> None:  # as Ray's own
        try:
            raise PermissionError(13, "denied")
        except OSError:
            logging.getLogger("ray._private.external_storage").exception("Error cleaning up")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", shutdown)
    monkeypatch.setattr(embedded, "_PROCESSES", ())
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)
    with local.ray_session():
        pass
    assert {(record.getMessage(), record.exc_info) for record in caplog.records} == {("Error cleaning up", None)}
