"""Exceptions whose message is meant for the user. The command line prints it without a traceback."""

from __future__ import annotations

from typing import Any


class InputError(Exception):
    """A user's input cannot be used. No work was started.

    Args:
        what: What is wrong.
        where: The file and the dotted key, or the object.
        fix: What to do.

    Attributes:
        code: Exit code of the command line.
    """

    code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        return "".join([f"{self.where}: " if self.where else "", self.what, f"\n  {self.fix}" if self.fix else ""])

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.where, self.fix)


class WorkFailedError(InputError):
    """A part of the work failed after it was started. The results of the other parts are kept.

    Attributes:
        outcome: What the work has made as far as it came; None if the function that raised it has no such value.
    """

    code = 1
    outcome: Any = None


class PartFailedError(WorkFailedError):
    """Some experts failed; the router serves the others."""

    code = 4


class LimitReachedError(WorkFailedError):
    """A limit of time or of GPU time was reached. The next run continues."""

    code = 5


class InfeasibleError(InputError):
    """The requested resources exceed every machine, so the work would wait forever."""

    code = 3


def _rebuild(kind: type[InputError], what: str, where: str, fix: str) -> InputError:
    """Create the error again when it is unpickled: ``where`` and ``fix`` are keyword-only."""
    return kind(what, where=where, fix=fix)
