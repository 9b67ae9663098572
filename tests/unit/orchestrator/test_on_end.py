"""``on_end``: what a URL and a command are told at each end of a run, what is hidden, and that it changes no end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny
from rich.console import Console

from cluster.error import ClusterError
from orchestrator.config.completion import mask_on_end
from orchestrator.config.loading import load_config, resolved_yaml
from orchestrator.run import driver, on_end, termination, tune_driver
from orchestrator.run.run_outcome import RunInProgress
from ttmoe.errors import InfeasibleError, InputError, PartFailedError, WorkFailedError
from workers.failure import Failure

MESSAGE = {"library": "lib", "status": "finished", "exit_code": 0, "run_id": "1f", "job_id": None, "counts": {}}


class Handler(BaseHTTPRequestHandler):
    """Answers with the next of the server's codes, and keeps the request."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = cast(Any, self.server)
        server.seen.append((self.path, dict(self.headers), json.loads(body)))
        code = server.codes.pop(0)
        time.sleep(server.pause)
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(on_end, "RETRY_PAUSE", 0)
    server = cast(Any, ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    server.seen, server.codes, server.pause = [], [200] * 5, 0
    server.url = f"http://127.0.0.1:{server.server_port}/services/T0/s3cr3t?token=s3cr3t"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def called(target: str, message: dict[str, Any] = MESSAGE) -> str:
    """Call ``on_end``; return what is printed."""
    console = Console(file=StringIO(), width=200)
    on_end.call_on_end(target, message, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_url_gets_the_message_once_and_nothing_is_printed(server: Any) -> None:
    assert called(server.url.replace("://", "://ann:geheim@")) == ""
    ((path, headers, message),) = server.seen
    assert (path, message) == ("/services/T0/s3cr3t?token=s3cr3t", MESSAGE)
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Basic YW5uOmdlaGVpbQ=="  # ann:geheim


@pytest.mark.parametrize(
    ("codes", "tries", "warning"), [([503, 200], 2, ""), ([500, 502], 2, "502"), ([404], 1, "404")]
)
def test_a_server_in_trouble_is_asked_once_more_and_one_that_refuses_is_not(
    server: Any, codes: list[int], tries: int, warning: str
) -> None:
    server.codes = codes
    printed = called(server.url)
    assert len(server.seen) == tries
    assert (warning in printed, bool(printed)) == (True, bool(warning))
    assert "s3cr3t" not in printed


def test_a_server_that_does_not_answer_or_is_not_there_is_a_warning_without_its_secrets(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pause = 0.5
    monkeypatch.setattr(on_end, "URL_SECONDS", 0.1)
    printed = called(server.url)
    assert tiny.wait_for(lambda: len(server.seen) == 2, 10)
    assert printed.startswith(f"warning: on_end failed (http://127.0.0.1:{server.server_port}/***): ")
    assert "timed out" in printed
    printed = called("http://ann:geheim@127.0.0.1:1/s3cr3t")
    assert printed.startswith("warning: on_end failed (http://127.0.0.1:1/***): ")
    assert "refused" in printed
    assert not [secret for secret in ("ann", "geheim", "s3cr3t") if secret in printed]


def test_a_command_reads_the_message_and_its_output_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_HOOK", "mine")
    variables = "$TTMOE_STATUS $TTMOE_EXIT_CODE $TTMOE_RUN_ID ${TTMOE_JOB_ID-none} $MY_HOOK"
    printed = called(f'cat > message.json; echo "{variables}"')
    assert json.loads((tmp_path / "message.json").read_text()) == MESSAGE
    assert printed == "finished 0 1f none mine\n"


def test_a_command_that_fails_is_a_warning() -> None:
    printed = called("echo [/no] such; exit 3 # https://u:geheim@h/s3cr3t")
    first, warning = printed.splitlines()
    assert first == "[/no] such"
    assert "exit code 3" in warning
    assert "https://h/***" in warning
    assert not [secret for secret in ("geheim", "s3cr3t") if secret in warning]


def test_a_command_that_does_not_end_is_stopped_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_end, "COMMAND_SECONDS", 0.3)
    printed = called(f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    assert "stopped after 0.3 s" in printed
    assert tiny.wait_for(lambda: not is_running(int((tmp_path / "pid").read_text())), 10)


def is_running(pid: int) -> bool:
    """Whether a process runs that is not only left to be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that lets a run end with an error, and returns the error and what ``on_end`` read."""

    def end(error: BaseException | None) -> tuple[BaseException | None, dict[str, Any]]:
        def plan_and_run(loaded: Any, made: RunInProgress, console: Console) -> None:
            version = SimpleNamespace(name="quickstart.trec", version=2, metrics={"test.accuracy": 0.75})
            made.cached = cast(Any, {"trec": version})
            made.stage_result.failed["sms_spam"] = Failure("code", "ValueError", "x")
            made.run_id = "1f"
            if error:
                raise error

        monkeypatch.setattr(driver, "_plan_and_run", plan_and_run)
        monkeypatch.setenv("TTMOE_JOB", "quickstart-0a")
        loaded = load_config("quickstart", [f"on_end='cat > {tmp_path}/told.json; exit 9'"])
        (tmp_path / "told.json").unlink(missing_ok=True)
        raised = None
        try:
            driver.run_library(loaded, Console(quiet=True))
        except BaseException as caught:
            raised = caught
        return raised, json.loads((tmp_path / "told.json").read_text())

    return end


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(None, "finished", 0), (PartFailedError("some"), "part_failed", 4), (WorkFailedError("all"), "failed", 1),
     (InputError("wrong"), "failed", 2), (InfeasibleError("large"), "failed", 3),
     (ClusterError("no", where="there", fix="so"), "failed", 2), (ZeroDivisionError("a defect"), "failed", 1),
     (PermissionError(13, "Permission denied", "a/file"), "failed", 2), (KeyboardInterrupt(), "interrupted", 130)],
)  # fmt: skip
def test_every_end_of_a_run_is_told_and_stays_as_it_was(ended: Any, error: Any, status: str, code: int) -> None:
    raised, message = ended(error)
    assert raised is error
    assert (message["status"], message["exit_code"]) == (status, code)
    assert (message["library"], message["run_id"], message["job_id"]) == ("quickstart", "1f", "quickstart-0a")
    assert message["counts"] == {"cached": 1, "failed": 1, "missing": 2}
    shown = status.replace("_", " ")
    assert message["text"] == f"ttmoe: run of quickstart {shown}, experts: 1 cached, 1 failed, 2 missing"
    if isinstance(error, WorkFailedError):
        assert error.outcome.failed == {"sms_spam": "ValueError: x"}
        assert (error.outcome.experts["trec"].version, error.outcome.experts["trec"].accuracy) == (2, 0.75)


def test_sigterm_is_told_apart_from_ctrl_c(ended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "_terminated_by", 15)
    assert [ended(KeyboardInterrupt())[1][key] for key in ("status", "exit_code")] == ["terminated", 143]


def test_without_on_end_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_plan_and_run", lambda *_: None)
    monkeypatch.setattr(driver, "call_on_end", lambda *_: pytest.fail("called"))
    driver.run_library(load_config("quickstart"), Console(quiet=True))


@pytest.mark.parametrize("wrong", ["", "ftp://h/s3cr3t", "https:///s3cr3t", "http:/h/s3cr3t", "https://h/a s3cr3t",
                                   "https://h:s3cr3t/", "slack://s3cr3t"])  # fmt: skip
def test_a_wrong_url_is_refused_without_being_shown(wrong: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("quickstart", [f"on_end={json.dumps(wrong)}"])
    assert "on_end" in caught.value.where
    assert "s3cr3t" not in caught.value.what + caught.value.fix


def test_the_recorded_config_holds_the_host_of_a_url_alone() -> None:
    for target, shown in (
        ("https://hooks.example.com/services/T0/s3cr3t", "https://hooks.example.com/***"),
        ("https://u:s3cr3t@h:8443", "https://h:8443/***"),
        ("https://h:8443", "https://h:8443"),
        ("https://u:s3/cr3t@h", None),
        ("curl -d @- https://h/T0/s3cr3t; ./end.sh", "curl -d @- https://h/*** ./end.sh"),
        ("./end.sh --all", "./end.sh --all"),
    ):
        assert "cr3t" not in mask_on_end(target)
        if shown:
            assert mask_on_end(target) == shown
            config = load_config("quickstart", [f"on_end={json.dumps(target)}"]).config
            assert config.on_end == target
            assert "s3cr3t" not in resolved_yaml(config)


def test_a_search_that_ends_before_its_work_is_told_too(tmp_path, monkeypatch):
    """What a search has made is told as well: see ``tests/integration/test_tune.py``."""
    told = []
    monkeypatch.setattr(tune_driver, "call_on_end", lambda on_end, message, console: told.append((on_end, message)))

    def refuse(*_: Any) -> None:
        raise InputError("no", where="tasks.a")

    monkeypatch.setattr(tune_driver, "plan_and_open", refuse)
    loaded = SimpleNamespace(config=SimpleNamespace(library="lib", on_end="tell"))
    with pytest.raises(InputError):
        tune_driver.tune_library(cast(Any, loaded), Console(file=StringIO()))
    ((command, message),) = told
    assert (command, message["status"], message["exit_code"], message["run_id"]) == ("tell", "failed", 2, None)
    assert message["text"] == "ttmoe: search of lib failed, trials: none"
