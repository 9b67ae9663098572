"""What goes into the registry while work goes on: in order, off the driver's loop, whether a server is there or not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 15.0  # seconds between tries while the store is away
_QUIET = 10.0  # seconds without an answer after which the store seems to be away


@dataclass(frozen=True)
class Operation:
    """One entry, which may be repeated without harm; ``key`` says whom its result or error concerns."""

    key: str
    do: Callable[[], Any]


@dataclass(frozen=True)
class OperationResult:
    """A deed's ``value``, or the ``error`` that it ended with."""

    key: str
    value: Any = None
    error: Exception | None = None


class Recorder:
    """A thread that does one deed after another; a context manager.

    A deed that fails because the store is away (``is_away``) is tried until it succeeds, or until the store has been
    away for ``patience`` seconds: then it and all others end with that error. Any other error is the deed's own.
    """

    def __init__(self, is_away: Callable[[Exception], bool], patience: float) -> None:
        self.is_away, self.patience = is_away, patience
        self.away_since: float | None = None  # on the monotonic clock
        self.given_up: Exception | None = None
        self._asked: float | None = None  # when the deed in hand was tried last
        self._deeds: queue.Queue[Operation | None] = queue.Queue()
        self._done: queue.Queue[OperationResult] = queue.Queue()
        self._open, self._lock = 0, threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Leave when all is done; after an interruption, also where the store is away: the rest is lost."""
        self._deeds.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)
            if kind is not None and self.is_quiet:
                self._stop.set()
                if self.away_since is None:
                    return  # it waits for an answer; the thread ends with the process

    def add(self, key: str, do: Callable[[], Any]) -> None:
        """Put a deed at the end of the line."""
        with self._lock:
            self._open += 1
        self._deeds.put(Operation(key, do))

    @property
    def is_quiet(self) -> bool:
        """Whether the store is away, or is about to be found so: it has not answered the deed in hand for a while."""
        asked = self._asked
        return self.away_since is not None or (asked is not None and time.monotonic() - asked > _QUIET)

    @property
    def waiting(self) -> int:
        """Deeds that are not done yet."""
        return self._open

    def done(self) -> list[OperationResult]:
        """What was done since the last call."""
        found = []
        while True:
            try:
                found.append(self._done.get_nowait())
            except queue.Empty:
                return found

    def _work(self) -> None:
        while (deed := self._deeds.get()) is not None:
            self._done.put(self._persist(deed))
            with self._lock:
                self._open -= 1

    def _persist(self, deed: Operation) -> OperationResult:
        wait = _FIRST_WAIT
        while True:
            if self.given_up:
                return OperationResult(deed.key, error=self.given_up)
            try:
                self._asked = time.monotonic()
                value = deed.do()
            except Exception as error:
                self._asked = None
                if not self.is_away(error):
                    self.away_since = None  # it answers
                    return OperationResult(deed.key, error=error)
                self._missed(error)
                if not self.given_up:
                    self._stop.wait(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self.away_since = self._asked = None
                return OperationResult(deed.key, value)

    def _missed(self, error: Exception) -> None:
        now = time.monotonic()
        self.away_since = self.away_since or now
        if now - self.away_since > self.patience or self._stop.is_set():
            self.given_up = error
