"""Folder layout of a library below the storage root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.schema import Config


@dataclass(frozen=True)
class LibraryFolders:
    """Folders of a library. All paths are absolute, because workers run in other working directories.

    Attributes:
        root: Storage root.
        library: Name of the library.
        cache: Folder of data that can be computed again; several libraries may share it.
    """

    root: Path
    library: str
    cache: Path

    @classmethod
    def of(cls, config: Config) -> LibraryFolders:
        """Return the folders of a config."""
        return cls(Path(config.storage.root).resolve(), config.library, config.cache.resolve())

    @property
    def home(self) -> Path:
        """Folder of the library."""
        return self.root / self.library

    @property
    def artifacts(self) -> Path:
        """Folder of MLflow's artifacts."""
        return self.root / "mlartifacts"

    def work_folder(self, kind: str, name: str, spec_hash: str) -> Path:
        """Return the folder in which a result is computed.

        Args:
            kind: ``experts``, ``router`` or ``search``.
            name: Name of the task, or ``router``.
            spec_hash: Hash of the result's spec.
        """
        return self.home / kind / f"{name}-{spec_hash[:12]}"
