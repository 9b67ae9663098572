"""A folder of Parquet files with answers, replaced within itself: it may be a mounted volume, which cannot be renamed.

Files are written under names of their run that begin with a dot, which readers of a folder pass over. When all are
written, the mark ``_SUCCESS`` is renamed to such a name too, and becomes the run's mark that its files are complete.
Then the earlier files are renamed likewise, the new ones get their names, and last the mark gets its own again. Earlier
files are removed after that. Until then an error undoes the renames, and nothing is removed: what a process that is
killed leaves can be brought to an end by a later one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.predict.leftovers import files_of_ended_runs, remove_files, run_name
from orchestrator.predict.readers import FileChunk
from ttmoe.atomic_write import write_atomically
from ttmoe.errors import InputError

SUCCESS = "_SUCCESS"
"""Empty file that marks a folder as complete, as Hadoop and Spark write it."""
_PATTERN = "part-*.parquet"
_FOREIGN = {"lost+found"}  # in the root of a volume


@dataclass(frozen=True)
class AnswerFolder:
    """The files of one run on their way into a folder.

    Attributes:
        path: Absolute path of the folder.
        run: Name of the run, which is part of the names of its files.
    """

    path: Path
    run: str = field(default_factory=run_name)

    def write(self, number: int, data: bytes) -> None:
        """Write the file of a chunk under its temporary name; a repeated call replaces it."""
        write_atomically(self.path / self._temporary_name(number), data)

    def publish(self, files: int) -> None:
        """Replace the files of earlier runs by those of this one, numbered from 0 to ``files - 1``; write the mark.

        Raises:
            OSError: If a file cannot be renamed. The earlier files are then in place.
        """
        new = [(self.path / self._temporary_name(i), self.path / f"part-{i:06}.parquet") for i in range(files)]
        marked, begun = self._mark.exists(), list[tuple[Path, Path]]()
        try:
            if not marked:
                write_atomically(self._complete, b"")
            first = [(self._mark, self._complete)] if marked else []
            for source, target in [*first, *self._hidden(), *new, (self._complete, self._mark)]:
                begun.append((source, target))
                source.rename(target)
        except BaseException:
            for source, target in reversed(begun):
                if not source.exists():
                    target.rename(source)
            if not marked:
                self._complete.unlink(missing_ok=True)
            raise

    def sweep(self, created: bool = False) -> None:
        """Remove this run's temporary files and what it replaced, and the folder if it is empty and ``created`` by it.

        If neither the earlier files nor the new ones are in place, because an error could not be undone, all remain.
        """
        if self._is_publishing():
            return
        remove_files(self.path.glob(f".*{self.run}-*"))
        if created:
            with suppress(OSError):
                self.path.rmdir()

    def finish(self) -> None:
        """Complete what this run, which was killed, had begun to publish; then remove what is left of it."""
        if self._is_publishing():
            with suppress(OSError):  # such as a folder that is not writable any more
                new = sorted(self.path.glob(f".{self.run}-part-*.parquet"))
                # They get their names in order: while the first one waits, the files with names are earlier ones.
                earlier = self._hidden() if new and new[0].name == self._temporary_name(0) else []
                renames = [(path, path.with_name(path.name.removeprefix(f".{self.run}-"))) for path in new]
                for source, target in [*earlier, *renames, (self._complete, self._mark)]:
                    source.rename(target)
        self.sweep()

    def _hidden(self) -> list[tuple[Path, Path]]:
        """Return the files that are in place, and the names under which they wait to be removed."""
        earlier = sorted(self.path.glob(_PATTERN))
        return [(path, path.with_name(f".replaced-{self.run}-{path.name}")) for path in earlier]

    def _is_publishing(self) -> bool:
        """Return whether publication has begun and not ended: the folder has no mark, and all new files are written."""
        return self._complete.exists() and not self._mark.exists()

    @property
    def _mark(self) -> Path:
        return self.path / SUCCESS

    @property
    def _complete(self) -> Path:
        return self.path / f".{self.run}-complete"

    def _temporary_name(self, number: int) -> str:
        return f".{self.run}-part-{number:06}.parquet"


def finish_ended_runs(out: Path) -> None:
    """Complete, or remove, what commands that were killed have left in a folder of answers; it may not exist."""
    for run in files_of_ended_runs(out.glob(".*")):
        AnswerFolder(out, run).finish()


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
