"""Waiting for a store that is away, where the driver cannot go on without its answer."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from orchestrator.registry.availability import is_unavailable
from orchestrator.registry.runs import FinalStatus, finish_run
from orchestrator.registry.store import Store
from ttmoe.errors import WorkFailedError

P = ParamSpec("P")
R = TypeVar("R")
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 15.0  # seconds between tries


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class RetryingStore(Store):
    """A store that is waited for up to ``patience`` seconds whenever it does not answer, and who is told so."""

    patience: float = 0.0
    say: Callable[[str], Any] = _silent


def retried(deed: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """The deed, repeated while the store is away and its patience lasts; then WorkFailedError."""

    @functools.wraps(deed)
    def call(store: RetryingStore, *args: P.args, **kwargs: P.kwargs) -> R:
        since, wait = None, _FIRST_WAIT
        while True:
            try:
                return deed(store, *args, **kwargs)
            except Exception as error:
                if not store.patience or not is_unavailable(error):
                    raise
                if since is None:
                    since = time.monotonic()
                    store.say("the MLflow store does not answer; waiting for it")
                if time.monotonic() - since > store.patience:
                    raise unavailable_error(store.uri, store.patience, error) from error
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    return call


def unavailable_error(uri: str, seconds: float, error: Exception) -> WorkFailedError:
    """What a driver ends with that has waited for so long."""
    return WorkFailedError(
        f"the MLflow store has not answered for {seconds / 60:g} minutes ({error})",
        where=uri,
        fix="when it is back, type the command again: finished experts are kept, and are then registered",
    )


@contextmanager
def end_run_on_exit(store: RetryingStore, run_id: str) -> Iterator[None]:
    """End the run with this context: FINISHED, FAILED after an error, KILLED when it is interrupted.

    Where the store is away, an error is not kept waiting and not hidden: the next run closes what this one left open.
    """
    try:
        yield
    except BaseException as error:
        status: FinalStatus = "FAILED" if isinstance(error, Exception) else "KILLED"
        try:
            finish_run(store, run_id, status)
        except Exception as other:
            if not is_unavailable(other):
                raise
        raise
    retried(finish_run)(store, run_id, "FINISHED")
