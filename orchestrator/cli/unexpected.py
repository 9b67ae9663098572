"""An error that no message is written for: one line for the person, and the traceback in a file."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from pathlib import Path

from ttmoe.errors import WorkFailedError


def unexpected_error(error: Exception, folder: Path | None = None) -> WorkFailedError:
    """Write the traceback of an error to a file, and return an error that names it.

    Args:
        error: The error.
        folder: Folder of the file; by default that of temporary files.
    """
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    path = (folder or Path(tempfile.gettempdir())) / f"ttmoe-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    except OSError as failure:
        fix = f"its traceback could not be written ({failure.strerror}); repeat the command with TMPDIR on another disk"
        return WorkFailedError(what, fix=fix)
    return WorkFailedError(what, fix=f"the traceback is in {path}; please report it, if nothing here explains it")
