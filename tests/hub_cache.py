"""The cache of a model hub as huggingface_hub lays it out, with a model at two commits; it is read without network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

MODEL = "some/model"
COMMITS = ("1" * 40, "2" * 40)


@dataclass(frozen=True)
class HubCache:
    """The cached model ``MODEL``; its two commits have different weights, the first those of the tiny base."""

    folder: Path

    def move(self, branch: str, commit: str) -> None:
        """Let a branch or tag name a commit."""
        path = self.folder / "refs" / branch
        path.parent.mkdir(exist_ok=True)
        path.write_text(commit)

    def snapshot(self, commit: str) -> Path:
        """Folder of a commit."""
        return self.folder / "snapshots" / commit


def write_hub_cache(folder: Path, base_folder: Path, patch: pytest.MonkeyPatch) -> HubCache:
    """Write the cache below ``folder``, with ``main`` at the first commit, and let huggingface_hub read it."""
    import huggingface_hub

    cache = HubCache(folder / "hub" / "models--some--model")
    shutil.copytree(base_folder, cache.snapshot(COMMITS[0]), ignore=shutil.ignore_patterns("cache"))
    tiny.save_base(cache.snapshot(COMMITS[1]), seed=1)
    cache.move("main", COMMITS[0])
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    return cache
