"""The message for a file that the user may not write, or that does not fit on its disk."""

from __future__ import annotations

import errno
import os
import shutil

from ttmoe.atomic_write import DISK_FULL_ERRNOS
from ttmoe.errors import InputError

_FIX = "check who may write there, and the free space; or choose another folder"
_FULL_FIX = "free space where this command writes: its output, storage.root, storage.cache, and TMPDIR or /tmp"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, *DISK_FULL_ERRNOS)


def refused_write(error: OSError) -> InputError | None:
    """Return the error that names the file which could not be written; None if ``error`` has another reason."""
    if isinstance(error, shutil.Error):  # of a copied folder: it has no errno, but a list of files
        return _refused_copy(error)
    where = str(error.filename2 or error.filename or "")  # the second one is that to which a file was copied
    if error.errno not in (_REFUSED if where else DISK_FULL_ERRNOS):
        return None
    return InputError(str(error.strerror), where=where, fix=_FIX if where else _FULL_FIX)


def _refused_copy(error: shutil.Error) -> InputError | None:
    for _, target, reason in error.args[0] if error.args and isinstance(error.args[0], list) else ():
        for number in _REFUSED:
            if os.strerror(number) in str(reason):
                return InputError(os.strerror(number), where=str(target), fix=_FIX)
    return None
