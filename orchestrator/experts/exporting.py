"""``ttmoe experts export``: an expert as a folder to take elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from orchestrator.experts.base_folder import base_of_version
from orchestrator.experts.probing import ProbeBank
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, EXPERT_WEIGHTS, load_expert
from ttmoe.interchange import export_lora
from ttmoe.interchange.peft_files import CONFIG, HEAD
from ttmoe.interchange.peft_files import LORA_WEIGHTS

WRITTEN = {"ttmoe": (EXPERT_WEIGHTS, EXPERT_MANIFEST), "peft": (HEAD, EXPERT_MANIFEST, LORA_WEIGHTS, CONFIG)}


def export_expert(
    root: Path,
    library: str | None,
    name: str,
    number: int | None,
    folder: Path,
    form: str,
    force: bool,
    console: Console,
) -> None:
    """Write an expert as a standard LoRA adapter (``peft``), or as its own two files (``ttmoe``).

    Raises InputError for a folder that holds something, unless ``force``; files of either form are then replaced,
    others left alone.
    """
    if form not in WRITTEN:
        raise InputError(f"there is no format {form!r}", where="--format", fix=f"one of {', '.join(WRITTEN)}")
    registry, found = open_library(root, library)
    version = choose_version(registry, found, name, number)
    if folder.exists() and not folder.is_dir():
        raise InputError("a file has that name", where=str(folder), fix="name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise InputError(
            "the folder is not empty", where=str(folder), fix="name another, or write into it with --force"
        )
    write = _write_lora if form == "peft" else _write_expert
    write(registry, version, folder)
    console.print(f"{version_label(version)} is in {folder}", highlight=False, markup=False, soft_wrap=True)


def _write_lora(registry: Registry, version: Version, folder: Path) -> None:
    bench = ProbeBank.open(base_of_version(registry, version))
    manifest = load_expert(bench.bank, registry.fetch(version), bench.base.digest, name=version.task)
    _clear(folder)
    # What writes is loaded with the base's language head; anything else has a head of its own.
    task_type = "CAUSAL_LM" if manifest.kind == "generate" else "FEATURE_EXTRACTION"
    export_lora(bench.bank, version.task, folder, manifest=manifest, task_type=task_type)


def _write_expert(registry: Registry, version: Version, folder: Path) -> None:
    source = registry.fetch(version)
    _clear(folder)
    for name in WRITTEN["ttmoe"]:  # the manifest last: a folder that has one is whole
        shutil.copyfile(source / name, folder / name)


def _clear(folder: Path) -> None:
    """Without the files of an earlier export: of two forms in one folder nobody could say which one counts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in {name for names in WRITTEN.values() for name in names}:
        (folder / name).unlink(missing_ok=True)
