"""``ttmoe experts export``: write a registered expert to a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.base_folder import base_of_version
from orchestrator.experts.probing import ProbeBank
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, EXPERT_WEIGHTS, load_expert
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.interchange import export_lora
from ttmoe.interchange.peft_files import HEAD_WEIGHTS, LORA_CONFIG, LORA_WEIGHTS

WRITTEN = {
    "ttmoe": (EXPERT_WEIGHTS, EXPERT_MANIFEST),
    "peft": (HEAD_WEIGHTS, EXPERT_MANIFEST, LORA_WEIGHTS, LORA_CONFIG),
}
"""The files of each format. The last one is written last, so a folder that has it is complete."""


def export_expert(
    store: StoreAddress,
    library: str | None,
    name: str,
    number: int | None,
    folder: Path,
    form: str,
    force: bool,
    console: Console,
) -> None:
    """Write an expert to a folder as a PEFT LoRA adapter (``peft``) or as its own files (``ttmoe``).

    ``name`` and ``number`` select the version, as in ``choose_version``. With ``force`` the folder may contain files:
    those of an earlier export are replaced, the others are kept.

    Raises:
        InputError: If the format or the version does not exist, or the folder is not empty and ``force`` is False.
    """
    if form not in WRITTEN:
        raise InputError(f"there is no format {form!r}", where="--format", fix=f"use one of: {', '.join(WRITTEN)}")
    registry, library = open_library(store, library)
    version = choose_version(registry, library, name, number)
    if folder.exists() and not folder.is_dir():
        raise InputError("it is a file", where=str(folder), fix="choose another folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        fix = "choose another folder, or write into it with --force"
        raise InputError("the folder is not empty", where=str(folder), fix=fix)
    write = _write_lora if form == "peft" else _write_expert
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as scratch:  # a failed export leaves the earlier one
            write(registry, version, Path(scratch))
            # Two formats in one folder would be ambiguous.
            for name in {name for names in WRITTEN.values() for name in names}.difference(WRITTEN[form]):
                (folder / name).unlink(missing_ok=True)
            for name in WRITTEN[form]:
                Path(scratch, name).replace(folder / name)
    except OSError as error:
        what = f"the files cannot be written ({error.strerror or error})"
        raise InputError(what, where=str(folder), fix="free space, or choose another folder") from error
    console.print(f"wrote {version_label(version)} to {folder}", highlight=False, markup=False, soft_wrap=True)


def _write_lora(registry: Registry, version: Version, folder: Path) -> None:
    probes = ProbeBank.open(base_of_version(registry, version))
    manifest = load_expert(probes.bank, registry.fetch(version), probes.base.digest, name=version.task)
    # PEFT loads a generating expert with the base's language head; the others bring their own head.
    task_type = "CAUSAL_LM" if manifest.kind in GENERATING_KINDS else "FEATURE_EXTRACTION"
    export_lora(probes.bank, version.task, folder, manifest=manifest, task_type=task_type)


def _write_expert(registry: Registry, version: Version, folder: Path) -> None:
    source = registry.fetch(version)
    for name in WRITTEN["ttmoe"]:
        shutil.copyfile(source / name, folder / name)
