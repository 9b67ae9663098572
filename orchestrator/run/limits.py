"""The limits of a run: when one is reached, the run ends as after Ctrl-C, and the next one continues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.config.runtime_sections import LimitSettings
from orchestrator.registry.interrupting import interrupt_main_thread
from ttmoe.errors import LimitReachedError

_POLL_SECONDS = 5.0


class RunLimits:
    """The limits of one command, and what it has used.

    Attributes:
        gpu_seconds: Returns the seconds in which GPUs were reserved so far, summed over GPUs.
        reached: The error for the limit that was reached; None before.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self.gpu_seconds: Callable[[], float] = lambda: 0.0
        self.reached: LimitReachedError | None = None
        self._settings, self._began, self._owner = settings, time.monotonic(), threading.get_ident()
        self._ended = threading.Event()

    @contextmanager
    def keep(self) -> Iterator[RunLimits]:
        """Interrupt this thread, if it is the main one, when a limit is reached within the context.

        Raises:
            LimitReachedError: A limit was reached.
        """
        if self._settings.hours or self._settings.gpu_hours:
            threading.Thread(target=self._watch, name="limits", daemon=True).start()
        try:
            yield self
        except KeyboardInterrupt:
            if self.reached is None:
                raise
            raise self.reached from None
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(_POLL_SECONDS, self._seconds_left())):
            used = {"hours": (time.monotonic() - self._began) / 3600, "gpu_hours": self.gpu_seconds() / 3600}
            for name, value in used.items():
                limit = getattr(self._settings, name)
                if limit and value >= limit:
                    self.reached = LimitReachedError(
                        f"the limit of {limit:g} {name.replace('_hours', ' hours').replace('gpu', 'GPU')} is reached",
                        where=f"limits.{name}",
                        fix="raise it and repeat the command to continue: finished work is kept",
                    )
                    interrupt_main_thread(self._owner)
                    return

    def _seconds_left(self) -> float:
        hours = self._settings.hours
        return max(0.0, self._began + hours * 3600 - time.monotonic()) if hours else _POLL_SECONDS
