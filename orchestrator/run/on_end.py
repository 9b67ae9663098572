"""Call of the config's ``on_end`` when a run has ended: a URL by POST, or a shell command.

Whatever goes wrong is a printed warning: it changes neither the end of the run nor its exit code.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from rich.console import Console

from cluster.error import ClusterError
from cluster.jobs import own_job
from orchestrator.config.completion import is_url, mask_on_end
from orchestrator.config.refused_writes import refused_write
from orchestrator.config.store_address import mask_secrets, split_credentials
from orchestrator.plan.json_output import finite
from orchestrator.run.termination import interruption_code, terminated_by
from ttmoe.errors import InputError, PartFailedError

URL_SECONDS = 10.0  # of each of two tries
COMMAND_SECONDS = 60.0
RETRY_PAUSE = 1.0  # seconds
_LAST_OUTPUT = 2000  # characters of a command's output that are printed


class Ended(Protocol):
    """What a run or a search has made so far."""

    @property
    def library(self) -> str:
        """The library."""

    @property
    def run_id(self) -> str | None:
        """Its MLflow run; None if its work had not begun."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of experts or trials by state."""


def end_message(
    outcome: Ended, error: BaseException | None, what: str = "run", counted: str = "experts"
) -> dict[str, Any]:
    """Return what ``on_end`` is told, as JSON values.

    Args:
        outcome: What the run or the search has made so far.
        error: What ended it; None if it finished.
        what: ``run`` or ``search``.
        counted: What is counted: ``experts`` or ``trials``.

    Returns:
        ``library``; ``status``: finished, part_failed, failed, interrupted or terminated; ``exit_code`` of the command;
        ``run_id`` of MLflow and ``job_id`` of the cluster, or None; ``counts``: experts or trials by state; ``text``: a
        line for people, under the key that chat services expect.
    """
    status, code = _status(error)
    counts = dict(outcome.counts)
    text = f"ttmoe: {what} of {outcome.library} {status.replace('_', ' ')}, {counted}: "
    return {
        "library": outcome.library,
        "status": status,
        "exit_code": code,
        "run_id": outcome.run_id,
        "job_id": own_job(),
        "counts": counts,
        "text": text + (", ".join(f"{count} {state}" for state, count in counts.items()) or "none"),
    }


def _status(error: BaseException | None) -> tuple[str, int]:
    """Return how a run ended, and the exit code that the command line gives it."""
    if error is None:
        return "finished", 0
    if isinstance(error, KeyboardInterrupt):
        return "terminated" if terminated_by() else "interrupted", interruption_code()
    if isinstance(error, InputError | ClusterError):
        return "part_failed" if isinstance(error, PartFailedError) else "failed", error.code
    refused = refused_write(error) if isinstance(error, OSError) else None
    return "failed", refused.code if refused else 1


def call_on_end(on_end: str, message: Mapping[str, Any], console: Console) -> None:
    """Call a URL or a command with the message.

    Args:
        on_end: The setting of the config.
        message: What ``end_message`` returns. A command reads it as JSON on its standard input; status, exit code,
            library, run and job are also in its environment: TTMOE_STATUS and so on.
        console: Prints the output of a command, and a warning if the call fails.
    """
    body = json.dumps(finite(message)).encode()
    try:
        if is_url(on_end):
            _post(on_end, body)
        else:
            _run_command(on_end, body, _variables(message), console)
    except Exception as error:
        reason = str(error).replace(on_end, mask_on_end(on_end)) or type(error).__name__
        _print(f"warning: on_end failed ({mask_on_end(on_end)}): {reason}", console)


def _post(url: str, body: bytes) -> None:
    """Send the message; try once more after an error other than a refusal."""
    address, user, password = split_credentials(url)
    headers = {"Content-Type": "application/json", "User-Agent": "ttmoe"}
    request = urllib.request.Request(address, body, headers, method="POST")
    if user or password:  # not for the host of a redirect
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {pair}")
    for is_last in (False, True):
        try:
            with urllib.request.urlopen(request, timeout=URL_SECONDS):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if is_last or error.code < 500:
                raise
        except OSError:  # URLError, and a time-out while the answer is read
            if is_last:
                raise
        time.sleep(RETRY_PAUSE)


def _variables(message: Mapping[str, Any]) -> dict[str, str]:
    names = ("library", "status", "exit_code", "run_id", "job_id")
    return {f"TTMOE_{name.upper()}": str(message[name]) for name in names if message[name] is not None}


def _run_command(command: str, body: bytes, variables: Mapping[str, str], console: Console) -> None:
    """Run a shell command with a limit of time, and print what it printed; raise OSError if it fails.

    Its output goes to a file, because a process that it leaves in the background would keep a pipe open.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, shell=True, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        try:
            process.communicate(body, timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it was stopped after {COMMAND_SECONDS:g} s") from None
        finally:
            if process.poll() is None:  # out of time, or Ctrl-C
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            if printed := output.read().decode(errors="replace").strip():
                _print(mask_secrets(printed[-_LAST_OUTPUT:]), console)
    if process.returncode:
        raise OSError(f"it ended with exit code {process.returncode}")


def _print(text: str, console: Console) -> None:
    with suppress(OSError):  # the terminal is closed
        console.print(text, highlight=False, markup=False, soft_wrap=True)
