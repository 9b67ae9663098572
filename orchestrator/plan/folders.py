"""Folder layout of a library below the storage root."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.schema import Config
from orchestrator.config.store_address import StoreAddress, sqlite_file
from ttmoe.errors import InputError


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

    def check_cache(self) -> None:
        """Create the cache folder if it is missing. Raise InputError if no files can be written in it."""
        in_root = self.cache == self.root / "cache"
        _check_writable(self.cache, "storage.root" if in_root else "storage.cache")

    def check(self, store: StoreAddress) -> None:
        """Create the folders, also that of a store that is a file, if they are missing.

        Raises:
            InputError: If no files can be written in one.
        """
        _check_writable(self.root, "storage.root")
        self.check_cache()
        if store.is_missing and (path := sqlite_file(store.uri)):
            _check_writable(path.parent, store.source)

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


def _check_writable(folder: Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        what = f"no files can be written in {folder} ({error.strerror})"
        raise InputError(what, where=key, fix="choose a writable folder") from error
