"""Retries with exponential back-off while the MLflow store is unavailable."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from orchestrator.config.store_address import mask_secrets, mask_uri
from orchestrator.registry.availability import is_unavailable
from orchestrator.registry.runs import FinalStatus, finish_run
from orchestrator.registry.store import Store
from ttmoe.errors import WorkFailedError

P = ParamSpec("P")
R = TypeVar("R")
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 15.0  # seconds between two attempts; each wait is twice the one before


def _ignore(message: str) -> None:
    pass


@dataclass(frozen=True)
class RetryingStore(Store):
    """An open store whose operations are retried while it is unavailable.

    Attributes:
        patience: Seconds to retry an operation, counted from its first failure. With 0 it is not retried.
        notify: Function that receives a message for the user when an operation fails for the first time.
    """

    patience: float = 0.0
    notify: Callable[[str], Any] = _ignore


def retry_while_unavailable(
    patience: float, on_outage: Callable[[], Any], interrupt: threading.Event | None = None
) -> Retrying:
    """Return a caller that repeats a function while the store is unavailable.

    ``retry_while_unavailable(...)(function, *args)`` returns the function's result. Errors other than an unavailable
    store are raised at once; the last error is raised when retrying stops.

    Args:
        patience: Seconds to retry, counted from the first failure.
        on_outage: Called once after the first failure, before the first wait.
        interrupt: Event that ends the current wait when it is set; the next failure is then the last.
    """
    interrupt = interrupt or threading.Event()

    def after_failure(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            # The first attempt may itself take minutes (an upload, a request that times out) before it fails.
            state.start_time = time.monotonic()
            on_outage()

    return Retrying(
        # A KeyboardInterrupt during the handling of a connection error has that error as its context.
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and is_unavailable(error)),
        wait=wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
        stop=stop_after_delay(patience) | stop_when_event_set(interrupt),
        sleep=sleep_using_event(interrupt),
        after=after_failure,
        reraise=True,
    )


def retried(operation: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Decorate a store operation with retries for the store's ``patience``.

    The decorated operation raises WorkFailedError if the store stays unavailable for longer.
    """

    @functools.wraps(operation)
    def call(store: RetryingStore, *args: P.args, **kwargs: P.kwargs) -> R:
        if not store.patience:
            return operation(store, *args, **kwargs)
        message = f"the MLflow store does not respond; retrying for up to {store.patience / 60:g} minutes"
        retrying = retry_while_unavailable(store.patience, functools.partial(store.notify, message))
        try:
            return retrying(operation, store, *args, **kwargs)
        except Exception as error:
            if not is_unavailable(error):
                raise
            raise unavailable_error(store.uri, store.patience, error) from error

    return call


def unavailable_error(uri: str, seconds: float, error: Exception) -> WorkFailedError:
    """Return the error that ends a run after the store at ``uri`` did not respond for ``seconds``."""
    return WorkFailedError(
        mask_secrets(f"the MLflow store did not respond for {seconds / 60:g} minutes ({error})"),
        where=mask_uri(uri),
        fix="when it responds again, repeat the command: finished experts are kept and will be registered",
    )


@contextmanager
def end_run_on_exit(store: RetryingStore, run_id: str) -> Iterator[None]:
    """End the run when the context exits: FINISHED, FAILED after an exception, KILLED after an interruption.

    After an exception, the run is ended without retries. If the store is unavailable, the run stays open and
    ``close_stale`` of the next ``ttmoe run`` ends it.
    """
    try:
        yield
    except BaseException as error:
        status: FinalStatus = "FAILED" if isinstance(error, Exception) else "KILLED"
        try:
            finish_run(store, run_id, status)
        except Exception as finish_error:
            if not is_unavailable(finish_error):
                raise
        raise
    retried(finish_run)(store, run_id, "FINISHED")
