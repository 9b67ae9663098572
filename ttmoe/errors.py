"""The exceptions that a user is meant to read."""

from __future__ import annotations


class InputError(Exception):
    """Something the user gave cannot be used; no work was started and nothing was lost.

    ``what`` says what is wrong, ``where`` names the file and dotted key (or the object), and ``fix`` says what
    to do. The command line prints the three and no traceback.
    """

    code = 2
    """What the command line exits with."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        return "".join([f"{self.where}: " if self.where else "", self.what, f"\n  {self.fix}" if self.fix else ""])

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.where, self.fix)


class WorkFailedError(InputError):
    """Work was started and a part of it failed; the rest is kept. Said in the same three parts."""

    code = 1


class InfeasibleError(InputError):
    """What was asked for fits nowhere: waiting would never end. Said in the same three parts."""

    code = 3


def _rebuild(kind: type[InputError], what: str, where: str, fix: str) -> InputError:
    return kind(what, where=where, fix=fix)
