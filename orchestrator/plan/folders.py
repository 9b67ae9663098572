"""Where a library's files lie below the storage root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.schema import Config


@dataclass(frozen=True)
class LibraryFolders:
    """Paths below ``root``; all of them absolute, for workers in other folders."""

    root: Path
    library: str
    cache: Path

    @classmethod
    def of(cls, config: Config) -> LibraryFolders:
        """The layout of a config."""
        return cls(Path(config.storage.root).resolve(), config.library, config.cache.resolve())

    @property
    def home(self) -> Path:
        """The library's own folder."""
        return self.root / self.library

    @property
    def artifacts(self) -> Path:
        """What MLflow keeps."""
        return self.root / "mlartifacts"

    def work(self, kind: str, name: str, spec_hash: str) -> Path:
        """The folder of one piece of work."""
        return self.home / kind / f"{name}-{spec_hash[:12]}"
