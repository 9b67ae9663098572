"""The files of a prepared task's splits, with sizes and digests: one that is cut short or changed is not read."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

from ttmoe.errors import InputError
from workers.data.damaged_files import remove_damaged
from workers.data.splits import SPLIT_NAMES

META = "meta.json"
_FILES = "files"  # key of META; absent in tasks that an earlier version prepared


def describe_files(folder: Path) -> dict[str, Any]:
    """Return the entry of ``meta.json`` that has size and digest of each split's file."""
    contents = {split: _path(folder, split).read_bytes() for split in SPLIT_NAMES}
    files = {split: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for split, data in contents.items()}
    return {_FILES: files}


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return what ``meta.json`` says about the data; None if it is damaged, or a file is missing or of a wrong size.

    No split is read.
    """
    try:
        meta = dict(json.loads((folder / META).read_text()))
        files = meta.pop(_FILES, {})
        sizes = {split: _path(folder, split).stat().st_size for split in SPLIT_NAMES}
        return meta if all(sizes[split] == file["size"] for split, file in files.items()) else None
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split.

    Raises:
        InputError: If there is no such split, or its file is damaged. It is removed: the task is prepared again.
    """
    import pyarrow
    import pyarrow.parquet

    path = _path(folder, split)
    fix = "repeat the command: the next run creates it again" if split in SPLIT_NAMES else ""
    if not path.is_file():
        raise InputError(f"there is no split {split!r}", where=str(path), fix=fix)
    data, digest = path.read_bytes(), _digest(folder, split)
    try:
        if digest not in (None, hashlib.sha256(data).hexdigest()):
            raise pyarrow.ArrowInvalid("its content does not match its checksum")
        # A file by itself is read without the set-up of a data set of many files.
        rows: list[dict[str, Any]] = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        fix = remove_damaged(path) or fix
        raise InputError(f"the file is damaged: {error}", where=str(path), fix=fix) from error
    return rows


def first_rows_of(folder: Path, split: str, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a split, without a check of the whole file. Raise InputError if it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    path = _path(folder, split)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return [row for batch in islice(file.iter_batches(count), 1) for row in batch.to_pylist()]
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a damaged text is no Unicode
        raise InputError(f"the file is damaged: {error}", where=str(path), fix="repeat the command") from error


def _digest(folder: Path, split: str) -> str | None:
    """Return the recorded digest; None if there is none, as when another process prepares the task again."""
    try:
        return str(json.loads((folder / META).read_text())[_FILES][split]["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _path(folder: Path, split: str) -> Path:
    return folder / f"{split}.parquet"
