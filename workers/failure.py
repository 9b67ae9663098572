"""How a piece of work failed, as a value that travels between processes whatever the error's class was."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["code", "memory", "system", "died", "lost", "stalled"]
"""The code or the data; out of memory; the system around it; its process died; its node was lost; no sign of life."""

_SYSTEM_ERRORS = (OSError, ConnectionError, TimeoutError, EOFError)
# What a path that does not exist or a wrong file says is the user's to mend; the rest of OSError is the machine's.
_CODE_ERRNOS = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Failure:
    """``error`` is the error's class, ``message`` its text, ``trace`` the traceback as printed."""

    kind: FailureKind
    error: str
    message: str
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.error}: {self.message}" if self.message else self.error


def to_failure(error: BaseException) -> Failure:
    """The failure that an error stands for."""
    trace = "".join(traceback.format_exception(error))
    return Failure(_kind(error), type(error).__name__, str(error), trace)


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, MemoryError) or _is_torch_memory(error):
        return "memory"
    if isinstance(error, _SYSTEM_ERRORS) and getattr(error, "errno", None) not in _CODE_ERRNOS:
        return "system"
    return "code"


def _is_torch_memory(error: BaseException) -> bool:
    """CUDA has a class of its own for it; the CPU's allocator only a message."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
