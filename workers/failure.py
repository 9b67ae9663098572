"""The failure of a unit of work, as a value that can be sent between processes whatever the class of the error."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["code", "memory", "system", "died", "lost", "stalled"]
"""The cause of a failure.

``code``: the code or the data. ``memory``: out of memory. ``system``: the machine, such as a disk or the network.
``died``: the process ended. ``lost``: the node was lost. ``stalled``: the process stopped sending progress.
"""

_SYSTEM_ERRORS = (OSError, ConnectionError, TimeoutError, EOFError)
# A missing path, a wrong type of file or missing permissions are for the user to fix; other OSErrors are the system's.
_CODE_ERRNOS = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Failure:
    """A failure of a unit of work.

    Attributes:
        kind: The cause.
        error: Name of the error's class.
        message: Text of the error.
        trace: Formatted traceback.
    """

    kind: FailureKind
    error: str
    message: str
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.error}: {self.message}" if self.message else self.error


def to_failure(error: BaseException) -> Failure:
    """Return the failure of kind ``code``, ``memory`` or ``system`` that describes an error."""
    trace = "".join(traceback.format_exception(error))
    return Failure(_kind(error), type(error).__name__, str(error), trace)


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, MemoryError) or _is_torch_memory(error):
        return "memory"
    if isinstance(error, _SYSTEM_ERRORS) and getattr(error, "errno", None) not in _CODE_ERRNOS:
        return "system"
    return "code"


def _is_torch_memory(error: BaseException) -> bool:
    """Detect torch running out of memory: CUDA has an error class for it, the CPU allocator only a message."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
