"""The processes of the cluster that this process has started, watched while Ray itself waits.

Where one of them has ended, Ray waits for half a minute or a whole one in calls that nothing interrupts, and then may
end this process without a word. So such calls are made in another thread than the one that watches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil

from cluster.error import ClusterEndedError, ClusterStartError

R = TypeVar("R")
CHECK_SECONDS = 0.5
"""Seconds between two looks at the processes."""
_PROCESSES = ("gcs_server", "raylet")  # without one of them, Ray does not work; the raylet ends with its agents
_embedded: dict[str, psutil.Process] = {}


@contextmanager
def embedded_cluster(start: Callable[[], Any]) -> Iterator[None]:
    """Call ``start``, which starts a cluster, and watch its processes within the context.

    ``start`` is called in a thread that lives as long as the context: Linux ends the processes of a cluster when the
    thread ends that has started them.

    Raises:
        ClusterStartError: If a process of the cluster ends before ``start`` does.
    """
    started, over, failures = threading.Event(), threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            start()
        except BaseException as error:
            failures.append(error)
        started.set()
        over.wait()

    earlier = psutil.Process().children()
    threading.Thread(target=run, name="ray", daemon=True).start()
    try:
        while not started.wait(CHECK_SECONDS):
            _find_processes(earlier)
            if ended := _ended():
                raise _start_error(ended)
        if failures:
            raise failures[0]
        _find_processes(earlier)
        if missing := [name for name in _PROCESSES if name not in _embedded]:
            raise _start_error(missing[0])
        yield
    finally:
        _embedded.clear()
        over.set()


def require_alive(cause: BaseException | None = None) -> None:
    """Raise ClusterEndedError if a process of the embedded cluster has ended; does nothing on another cluster.

    Ray itself notices the end of its processes late, and for one of them only by ending this process after a minute.

    Args:
        cause: The error that this end may have caused.
    """
    if ended := _ended():
        raise ClusterEndedError(
            f"Ray's process {ended} ended",
            where="this machine",
            fix="see whether its memory is exhausted (dmesg), and repeat the command: finished work is kept",
        ) from cause


def while_alive(work: Callable[[], R]) -> R:
    """Return what ``work`` returns, which waits for Ray in another thread.

    Raises:
        ClusterEndedError: As soon as the embedded cluster has ended. The thread is left to itself.
    """
    results, failures = list[R](), list[BaseException]()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="waits for Ray", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(CHECK_SECONDS)
        require_alive()
    for error in failures:
        require_alive(error)
        raise error
    return results[0]


def _find_processes(earlier: list[psutil.Process]) -> None:
    """Remember the children of this process that Ray's work depends on, except those of an ``earlier`` cluster."""
    for child in psutil.Process().children():
        try:
            name = child.name()
        except psutil.NoSuchProcess:
            continue
        if name in _PROCESSES and child not in earlier:
            _embedded.setdefault(name, child)


def _ended() -> str | None:
    return next((name for name in _PROCESSES if name in _embedded and not _is_running(_embedded[name])), None)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _start_error(process: str) -> ClusterStartError:
    return ClusterStartError(
        f"Ray does not start: its process {process} ended",
        where="this machine",
        fix="free memory (see dmesg) and space in /tmp (or set RAY_TMPDIR), and repeat the command",
    )
