"""Background thread that writes to the registry in order, so that training does not wait for the MLflow store."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.registry import is_unavailable, retry_while_unavailable

_SLOW_ATTEMPT = 10.0  # seconds after which an attempt without a response counts as a sign of an outage


@dataclass(frozen=True)
class Operation:
    """A write to the registry. It must be safe to repeat.

    Attributes:
        key: Identifies the operation in its result.
        call: Function that performs the write.
    """

    key: str
    call: Callable[[], Any]


@dataclass(frozen=True)
class OperationResult:
    """The return ``value`` of an operation, or the ``error`` that it raised; and the ``seconds`` that it took."""

    key: str
    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0


class Recorder:
    """Executor of registry operations, one after another in a background thread; a context manager.

    An operation that fails because the store is unavailable is retried for ``patience`` seconds. If it still fails,
    neither this nor any later operation is attempted again: all end with that error. Other errors concern only the
    operation that raised them.

    Attributes:
        patience: Seconds to retry an operation, counted from its first failure.
        unavailable_since: Time of the first failure of the current outage on the monotonic clock, in seconds; None
            while the store responds.
        final_error: The error after which no operation is attempted; None before that.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.unavailable_since: float | None = None
        self.final_error: Exception | None = None
        self._attempt_start: float | None = None
        self._operations: queue.Queue[Operation | None] = queue.Queue()
        self._results: queue.Queue[OperationResult] = queue.Queue()
        self._pending, self._lock = 0, threading.Lock()
        self._interrupt = threading.Event()
        self._retrying = retry_while_unavailable(patience, self._note_outage, self._interrupt)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait until all operations are done. After an exception, drop them if the store does not respond."""
        self._operations.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)
            if kind is not None and self.is_unresponsive:
                self._interrupt.set()
                if self.unavailable_since is None:
                    return  # the thread waits for a response; as a daemon it ends with the process

    def add(self, key: str, call: Callable[[], Any]) -> None:
        """Append an operation to the queue."""
        with self._lock:
            self._pending += 1
        self._operations.put(Operation(key, call))

    @property
    def is_unresponsive(self) -> bool:
        """Whether the store is unavailable, or has not responded to the current attempt for 10 seconds."""
        start = self._attempt_start
        return self.unavailable_since is not None or (start is not None and time.monotonic() - start > _SLOW_ATTEMPT)

    @property
    def pending(self) -> int:
        """Number of operations that have not ended."""
        return self._pending

    def pop_results(self) -> list[OperationResult]:
        """Return the results since the last call, in order."""
        results = []
        while True:
            try:
                results.append(self._results.get_nowait())
            except queue.Empty:
                return results

    def _run(self) -> None:
        while (operation := self._operations.get()) is not None:
            self._results.put(self._execute(operation))
            with self._lock:
                self._pending -= 1

    def _execute(self, operation: Operation) -> OperationResult:
        if self.final_error:
            return OperationResult(operation.key, error=self.final_error)
        start = time.monotonic()
        try:
            result = OperationResult(operation.key, self._retrying(self._attempt, operation))
        except Exception as error:
            result = OperationResult(operation.key, error=error)
            if is_unavailable(error):
                self.final_error = error
        self._attempt_start = None
        if not self.final_error:
            self.unavailable_since = None
        return replace(result, seconds=time.monotonic() - start)

    def _attempt(self, operation: Operation) -> Any:
        self._attempt_start = time.monotonic()
        return operation.call()

    def _note_outage(self) -> None:
        self.unavailable_since = time.monotonic()
