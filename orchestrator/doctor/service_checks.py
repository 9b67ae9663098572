"""Checks of what a machine reaches: the MLflow server, the hub, and by their answers its own clock."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from orchestrator.config.store_address import StoreAddress, mask_uri, split_credentials
from orchestrator.doctor.checks import Check, checked, doubtful, passed, passed_over

_SECONDS = 10
MOST_CLOCK_SECONDS = 60
"""Difference of clocks above which times in MLflow mislead, and leases of libraries on several hosts may be lost."""
_OFF = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Answer:
    """The answer of a server.

    Attributes:
        status: Status of HTTP; 401 of a server that asks for a password is an answer, too.
        text: Content.
        ahead: Seconds by which this machine's clock is ahead of the server's; None if the server does not tell.
    """

    status: int
    text: str
    ahead: float | None


def ask(url: str, method: str = "GET") -> Answer:
    """Send a request without a password to a server.

    Raises:
        OSError: If no server answers.
    """
    try:
        with urlopen(Request(url, method=method), timeout=_SECONDS) as found:
            return Answer(found.status, found.read(10_000).decode(errors="replace"), _ahead(found.headers))
    except HTTPError as error:
        with error:
            return Answer(error.code, "", _ahead(error.headers))
    except HTTPException as error:
        raise OSError(f"no answer in HTTP: {error}") from error


def _ahead(headers: Message) -> float | None:
    date = headers.get("Date")
    return (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() if date else None


@checked("MLflow server")
def check_tracking(store: StoreAddress) -> Check:
    """Check that the MLflow store of the config answers, and the version of the server."""
    if store.uri.startswith("sqlite:"):
        return passed_over(f"none is set: the record is {mask_uri(store.uri)}")
    from orchestrator.registry import Registry

    with tempfile.TemporaryDirectory() as scratch:
        Registry.open(store.uri, Path(scratch), store.source)
    shown = mask_uri(store.uri)
    if not is_server(store.uri):
        return passed(f"{shown} answers")
    answer, own = ask(f"{_address(store.uri)}/version"), version("mlflow")
    there = answer.text.strip() if answer.status == 200 else ""
    if there and there.split(".")[0] != own.split(".")[0]:
        return doubtful(f"{shown} has MLflow {there}; here is {own}", f"install mlflow=={there} here, or {own} there")
    return passed(f"{shown} answers" + (f", MLflow {there}" if there else ""))


@checked("MLflow")
def check_mlflow(folder: Path) -> Check:
    """Check that an MLflow store can be made in a folder, written and read."""
    from orchestrator.registry import Registry

    folder.mkdir(parents=True, exist_ok=True)
    registry = Registry.open(f"sqlite:///{folder / 'mlflow.db'}", folder / "mlartifacts")
    run = registry.start_run("ttmoe-doctor", "check", {}, "", {})
    registry.finish_run(run, "FINISHED")
    if (status := registry.run_record(run).status) != "FINISHED":
        raise OSError(f"a run that was written as FINISHED is read as {status}")
    return passed(f"{version('mlflow')}; a store was made, written and read")


@checked("hub")
def check_hub() -> Check:
    """Check that the model hub answers, and whether there is a token for it."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFF:
        return passed_over("off by choice (HF_HUB_OFFLINE)")
    address = hub_address()
    from huggingface_hub import get_token

    token = "with a token" if get_token() else "without a token: gated models need one (HF_TOKEN)"
    try:
        status = ask(address, "HEAD").status
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        fix = "only bases and data of the hub need it: set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 to work without"
        return doubtful(f"{address} does not answer ({reason})", fix)
    if status >= 500:
        return doubtful(f"{address} answers with error {status}", "try again later")
    return passed(f"{address} answers, {token}")


def hub_address() -> str:
    """Return the address of the model hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@checked("clock")
def check_clock(addresses: Sequence[str]) -> Check:
    """Compare this machine's clock with that of the first server that answers.

    Args:
        addresses: Addresses of servers.
    """
    for address in addresses:
        try:
            ahead = ask(address, "HEAD").ahead
        except OSError:
            continue
        if ahead is None:
            continue
        shown = mask_uri(address)
        if abs(ahead) > MOST_CLOCK_SECONDS:
            side = "ahead of" if ahead > 0 else "behind"
            return doubtful(f"{abs(ahead):.0f} seconds {side} that of {shown}", "set it, by NTP for example")
        return passed(f"agrees with that of {shown}")
    return passed_over("no server answers whose clock could be compared")


def clock_addresses(store: StoreAddress) -> list[str]:
    """Return the servers whose clocks are compared: the MLflow server, and the hub unless it is off by choice."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFF
    return [*([_address(store.uri)] if is_server(store.uri) else []), *([] if offline else [hub_address()])]


def is_server(uri: str) -> bool:
    """Return whether the store is a tracking server, not a database."""
    return uri.startswith(("http://", "https://"))


def _address(uri: str) -> str:
    return split_credentials(uri)[0].rstrip("/")
