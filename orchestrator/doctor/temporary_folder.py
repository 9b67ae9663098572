"""A folder in the storage folder for the length of a check."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TemporaryFolder:
    """A folder in a storage folder.

    Attributes:
        path: Its path.
        made: Folders that did not exist before it, the innermost first.
    """

    path: Path
    made: tuple[Path, ...]

    @classmethod
    def below(cls, root: Path, prefix: str) -> TemporaryFolder:
        """Make a folder in a storage folder, which need not exist."""
        missing = tuple(folder for folder in (root, *root.parents) if not folder.exists())
        root.mkdir(parents=True, exist_ok=True)
        return cls(Path(tempfile.mkdtemp(prefix=prefix, dir=root)), missing)

    def remove(self) -> None:
        """Remove it, and a storage folder that was made for it and holds nothing else."""
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self.made:
            if any(folder.iterdir()):
                return
            folder.rmdir()
