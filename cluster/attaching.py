"""Check a running Ray cluster before this process connects to it: whether it answers, and how it authenticates."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from cluster.error import ClusterError

AUTH_MODE = "RAY_AUTH_MODE"
_CONNECT_SECONDS = 5
_PROBE_SECONDS = 60


def cluster_address() -> str | None:
    """Return ``RAY_ADDRESS``; None if it is not set, or ``local``, which for Ray means a cluster of this process."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def authentication_of(address: str) -> str:
    """Return the mode of authentication for a driver of the cluster: ``RAY_AUTH_MODE`` if set, else the cluster's own.

    They must agree: a cluster without authentication accepts a driver with a token, and then cannot call it back.

    Args:
        address: Value of ``RAY_ADDRESS``.

    Returns:
        ``token`` or ``disabled``.

    Raises:
        ClusterError: If nothing listens at the address.
    """
    _require_answer(address)
    if mode := os.environ.get(AUTH_MODE):
        return mode
    return "token" if has_token() and health_error(address, "disabled") else "disabled"


def connection_error(address: str, mode: str, error: Exception) -> ClusterError:
    """Return the error for a cluster that refused this driver.

    Args:
        address: Value of ``RAY_ADDRESS``.
        mode: The driver's mode of authentication.
        error: Ray's error.
    """
    where, reason = f"RAY_ADDRESS={address}", health_error(address, mode) or str(error)
    if "AuthenticationError" in reason:
        return token_error(where)
    if "ersion mismatch" in reason:
        fix = "install the same versions of Ray and Python here as on the cluster"
        return ClusterError(" ".join(reason.split()), where=where, fix=fix)
    return _no_answer(address, reason)


def token_error(where: str) -> ClusterError:
    """Return the error for a cluster that asks for another token than this machine has, if it has one."""
    fix = f"copy ~/.ray/auth_token of the cluster's head to this machine or set RAY_AUTH_TOKEN, and unset {AUTH_MODE}"
    return ClusterError("the Ray cluster asks for a token; this machine has none or another", where=where, fix=fix)


def _no_answer(address: str, reason: str) -> ClusterError:
    fix = "start the cluster, correct the address, or unset RAY_ADDRESS to run on this machine"
    return ClusterError(f"no Ray cluster answers ({reason})", where=f"RAY_ADDRESS={address}", fix=fix)


def _require_answer(address: str) -> None:
    """Ray itself waits for most of a minute for an address where nothing listens."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        with closing(socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS)):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise _no_answer(address, str(error)) from None


def health_error(address: str, mode: str) -> str | None:
    """Return why a client in this mode is refused; None if it is not. Ray reads the mode once in a process."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, AUTH_MODE: mode},
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_SECONDS} s"
    return None if done.returncode == 0 else _message(done.stderr)


def _message(error: str) -> str:
    """Return the message at the end of a traceback, which may have several lines."""
    after_calls = error.rpartition('\n  File "')[2].splitlines()[1:] or error.splitlines()
    lines = itertools.dropwhile(lambda line: line.startswith(" "), after_calls)
    return "\n".join(lines).strip() or "no reason given"


def has_token() -> bool:
    """Return whether Ray finds a token on this machine."""
    found = Path("~/.ray/auth_token").expanduser()
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or found.is_file())
