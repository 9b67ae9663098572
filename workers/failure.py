"""The failure of a unit of work, as a value that can be sent between processes whatever the class of the error."""

from __future__ import annotations

import errno
import re
import traceback
from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["code", "memory", "device", "system", "died", "lost", "stalled", "skipped", "stopped"]
"""The cause of a failure.

``code``: the code or the data. ``memory``: out of memory. ``device``: a GPU; the process can no longer use it.
``system``: the machine, such as a disk or the network. ``died``: the process ended. ``lost``: the node was lost.
``stalled``: the process stopped sending progress. ``skipped``: a user left it out. ``stopped``: a user had it, or work
beside it, stopped.
"""

_SYSTEM_ERRORS = (OSError, ConnectionError, TimeoutError, EOFError)
# A missing path, a wrong type of file or missing permissions are for the user to fix; other OSErrors are the system's.
_CODE_ERRNOS = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM})
# CUDA and its libraries report errors as RuntimeError or a subclass: only the text tells which.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cudaErrorMemoryAllocation|\bCU\w+_ALLOC\w*_FAILED"
    r"|alloc\w* .*workspace|workspace .*alloc|unable to find a valid cuDNN algorithm",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"\b(CUDA|HIP|CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT|NVML|NVRTC)( driver| unknown)? error|\bCU(BLAS|DNN)_STATUS_"
    r"|ECC error|device-side assert|illegal memory access|unspecified launch failure|context is destroyed"
    r"|no CUDA-capable device|no CUDA GPUs are available|no NVIDIA driver|cudaGetDeviceCount",
    re.IGNORECASE,
)
# safetensors reports a full disk as an error of its own, which is no OSError: only the text tells.
_FULL_DISK = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """A failure of a unit of work.

    Attributes:
        kind: The cause.
        error: Name of the error's class.
        message: Text of the error.
        trace: Formatted traceback.
        preempted: Whether the node was lost after a notice of its provider.
    """

    kind: FailureKind
    error: str
    message: str
    trace: str = ""
    preempted: bool = False

    def __str__(self) -> str:
        return f"{self.error}: {self.message}" if self.message else self.error


def to_failure(error: BaseException) -> Failure:
    """Return the failure of kind ``code``, ``memory``, ``device`` or ``system`` that describes an error."""
    trace = "".join(traceback.format_exception(error))
    return Failure(_kind(error), type(error).__name__, str(error), trace)


def _kind(error: BaseException) -> FailureKind:
    # torch's classes are recognised by name, because this module is imported without torch.
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return "memory"
    if isinstance(error, RuntimeError):
        if _OUT_OF_MEMORY.search(str(error)):
            return "memory"
        if name == "AcceleratorError" or _DEVICE.search(str(error)):
            return "device"
    if name == "SafetensorError" and _FULL_DISK.search(str(error)):
        return "system"
    if isinstance(error, _SYSTEM_ERRORS):
        return "code" if getattr(error, "errno", None) in _CODE_ERRNOS else "system"
    # The message that a file cannot be read is raised from the system's error. Packages raise OSErrors without a number
    # for files that are damaged.
    cause = error.__cause__
    return "code" if cause is None or getattr(cause, "errno", None) is None else _kind(cause)
