"""A folder of Parquet files with answers, replaced within itself: it may be a mounted volume, which cannot be renamed.

Files are written under names of their run that begin with a dot, which readers of a folder pass over. When all are
written, the earlier files are renamed to such names, the new ones get theirs, and the mark ``_SUCCESS`` follows last.
Earlier files are removed after the mark. Until then an error undoes the renames, and a process that is killed leaves
the earlier and the new files, without the mark.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.predict.readers import FileChunk
from ttmoe.atomic_write import write_atomically
from ttmoe.errors import InputError

SUCCESS = "_SUCCESS"
"""Empty file that marks a folder as complete, as Hadoop and Spark write it."""
_PATTERN = "part-*.parquet"
_FOREIGN = {"lost+found"}  # in the root of a volume


def _run_name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class AnswerFolder:
    """The files of one run on their way into a folder.

    Attributes:
        path: Absolute path of the folder.
        run: Name of the run, which is part of the names of its files.
    """

    path: Path
    run: str = field(default_factory=_run_name)

    def write(self, number: int, data: bytes) -> None:
        """Write the file of a chunk under its temporary name; a repeated call replaces it."""
        write_atomically(self.path / self._temporary_name(number), data)

    def publish(self, files: int) -> None:
        """Replace the files of earlier runs by those of this one, numbered from 0 to ``files - 1``; write the mark.

        Raises:
            OSError: If a file cannot be renamed. The earlier files are then in place.
        """
        earlier = sorted(self.path.glob(_PATTERN))
        hidden = [path.with_name(f".replaced-{self.run}-{path.name}") for path in earlier]
        new = [(self.path / self._temporary_name(i), self.path / f"part-{i:06}.parquet") for i in range(files)]
        mark = self.path / SUCCESS
        marked, renamed = mark.exists(), list[tuple[Path, Path]]()
        try:
            mark.unlink(missing_ok=True)
            for source, target in [*zip(earlier, hidden, strict=True), *new]:
                source.rename(target)
                renamed.append((source, target))
            write_atomically(mark, b"")
        except BaseException:
            for source, target in reversed(renamed):
                target.rename(source)
            if marked:
                write_atomically(mark, b"")
            raise
        _remove(hidden)

    def sweep(self, created: bool) -> None:
        """Remove this run's temporary files, and the folder if it is empty and this run ``created`` it."""
        _remove(list(self.path.glob(f".*{self.run}-part-*")))
        if created:
            with suppress(OSError):
                self.path.rmdir()

    def _temporary_name(self, number: int) -> str:
        return f".{self.run}-part-{number:06}.parquet"


def check_folder(out: Path, files: Sequence[FileChunk], force: bool) -> None:
    """Check that ``out`` can be created or filled as a folder of answers.

    Hidden files, such as those of a run that was killed, are no obstacle.

    Raises:
        InputError: If it contains one of the input ``files`` or a link to one, is a file or a link to nothing, contains
            other files than answers, contains answers and ``force`` is False, or it is not writable, or its parent
            folder does not exist.
    """
    inputs = {file.path for file in files}
    if found := sorted(path.name for path in out.glob("*") if os.path.realpath(path) in inputs):
        what = f"the answers would replace an input file: {found[0]} is in the output folder"
        raise InputError(what, where=str(out), fix="choose another --out")
    if out.is_symlink() and not out.exists():
        fix = "create the folder that it names, or choose another --out"
        raise InputError("it is a link to nothing", where=str(out), fix=fix)
    if out.exists() and not out.is_dir():
        raise InputError("it is a file; --ray writes a folder", where=str(out), fix="choose another --out")
    existing = {path.name for path in out.glob("[!.]*")} - _FOREIGN
    if existing - {SUCCESS} - {path.name for path in out.glob(_PATTERN)}:
        raise InputError("the folder contains other files", where=str(out), fix="choose another --out")
    if existing and not force:
        raise InputError("the folder is not empty", where=str(out), fix="choose another --out, or replace it: --force")
    if not out.parent.is_dir():
        raise InputError("its parent folder does not exist", where=str(out), fix="create it, or choose another --out")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise InputError("the folder is not writable", where=str(out), fix="choose another --out")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # the answers are complete, or another error is on its way
            path.unlink()
