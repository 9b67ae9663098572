"""The files that a job takes to a cluster, and their digest, by which a repeated submission is recognised."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.error import ClusterError

MAX_BYTES = 256 * 1024**2
"""Largest size of a job's data files together. Ray keeps them in the memory of the head node."""


@dataclass(frozen=True)
class JobFiles:
    """Files of a job's working directory.

    Attributes:
        paths: Local file or folder of each data file by its path in the working directory.
        texts: Content of each further file by its path in the working directory.
        code: Local folder of each Python package by its name.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, Path] = field(default_factory=dict)

    def data_sizes(self) -> dict[str, int]:
        """Return the size of each entry of ``paths`` in bytes."""
        return {name: sum(each.stat().st_size for each in _files(path)) for name, path in self.paths.items()}

    def check_size(self, storage: str | None) -> None:
        """Raise ClusterError if the data files are too large to be sent with a job.

        Args:
            storage: The shared folder of the cluster, for the error.
        """
        sizes = self.data_sizes()
        if sum(sizes.values()) > MAX_BYTES:
            largest = max(sizes, key=sizes.__getitem__)
            raise ClusterError(
                f"the local files of the config have {sum(sizes.values()) / 1024**2:.0f} MiB, more than the "
                f"{MAX_BYTES // 1024**2} MiB that are sent with a job",
                where=str(self.paths[largest]),
                fix=f"copy it to {storage or 'a folder that all nodes share'}, and write its path there in the config"
                + ("" if storage else "; name that folder as `storage` of the cluster"),
            )

    def digest(self) -> str:
        """Return the SHA-256 of all paths and contents."""
        total = hashlib.sha256()
        for name, content in sorted(self.contents().items()):
            data = content.encode() if isinstance(content, str) else content.read_bytes()
            total.update(f"{name}\0{len(data)}\0".encode() + data)
        return total.hexdigest()

    def write(self, folder: Path) -> None:
        """Copy all files into a folder."""
        for name, content in self.contents().items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.write_text(content, encoding="utf-8")
            else:
                shutil.copyfile(content, target)

    def contents(self) -> dict[str, Path | str]:
        """Return the local file, or the text, of each file by its path in the working directory."""
        found: dict[str, Path | str] = dict(self.texts)
        for name, path in {**self.paths, **self.code}.items():
            for each in _files(path):
                found[f"{name}/{each.relative_to(path)}" if path.is_dir() else name] = each
        return found


def _files(path: Path) -> list[Path]:
    """Return the file, or all files of a folder, without bytecode."""
    if not path.is_dir():
        return [path]
    return [each for each in sorted(path.rglob("*")) if each.is_file() and "__pycache__" not in each.parts]
