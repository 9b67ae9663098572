"""Create a folder atomically, so that concurrent processes never see a part of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_folder(target: Path, marker: str = "") -> Iterator[Path]:
    """Yield an empty folder to fill; rename it to ``target`` if the block ends without an error.

    If another process has created ``target`` in the meantime, its folder is kept and this one is deleted. The same
    content is expected in both. An incomplete ``target`` is replaced.

    Args:
        target: The final path.
        marker: A file of ``target`` that exists if the folder is complete; "" accepts any existing folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder beside the target is on the same file system, where a rename is atomic.
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        yield scratch
        _synchronize(scratch)
        with suppress(PermissionError):  # some network file systems refuse it
            scratch.chmod(0o755)  # mkdtemp makes it private to its owner, but a cache may be shared
        try:
            os.rename(scratch, target)
        except OSError:
            if not target.exists():
                raise
            if not (target / marker).exists():
                _replace(target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _synchronize(folder: Path) -> None:
    """Wait until the files are on the disk: after a power failure the renamed folder must not have empty ones."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _replace(target: Path, scratch: Path) -> None:
    """Put ``scratch`` in the place of an incomplete folder, such as one of which a user deleted files."""
    incomplete = scratch.with_name(f"{scratch.name}-old")
    os.rename(target, incomplete)
    try:
        os.rename(scratch, target)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
