"""``ttmoe experts export --all``: write all writing experts of a library for a server of LoRA adapters."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.base_folder import base_of_version
from orchestrator.experts.probing import ProbeBank
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.plan.json_output import finite
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from orchestrator.registry.versions import CHAMPION
from ttmoe.atomic_write import write_atomically
from ttmoe.base import Base
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.interchange import export_lora

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM documents for ``--max-lora-rank``."""
TABLE, COMMAND = "experts.json", "serve.sh"


def export_library(
    store: StoreAddress, library: str | None, folder: Path, form: str, force: bool, console: Console
) -> None:
    """Write every expert of a library that writes text as a PEFT LoRA adapter to ``FOLDER/<task>``.

    Beside them, ``experts.json`` has the adapter of each task and the router that names tasks, and ``serve.sh`` the
    command of vLLM that serves them all. Experts with a classification head are left out, and named.

    Raises:
        InputError: If the format is another one, the folder is not empty and ``force`` is False, or cannot be written,
            or no expert writes.
    """
    if form != "peft":
        raise InputError(f"all experts are exported as peft, not as {form!r}", where="--format", fix="leave it out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        fix = "choose another folder, or write into it with --force"
        raise InputError("it is not an empty folder", where=str(folder), fix=fix)
    registry, library = open_library(store, library)
    tasks = sorted({version.task for version in registry.experts(library)})
    versions = [choose_version(registry, library, task) for task in tasks]
    writing = [version for version in versions if _writes(registry, version)]
    others = [version.task for version in versions if version not in writing]
    if not writing:
        what = f"no expert writes text: {', '.join(others) or 'none'} have a head for classes or options"
        fix = "export one of them with `ttmoe experts export TASK FOLDER`"
        raise InputError(what, where=f"library {library}", fix=fix)
    try:
        _write(registry, library, writing, others, folder, console)
    except OSError as error:
        what = f"the files cannot be written ({error.strerror or error})"
        raise InputError(what, where=str(folder), fix="free space, or choose another folder") from error


def _write(
    registry: Registry, library: str, writing: list[Version], others: list[str], folder: Path, console: Console
) -> None:
    base = base_of_version(registry, writing[0])
    probes = ProbeBank.open(base)
    rows = []
    for version in writing:
        manifest = load_expert(probes.bank, registry.fetch(version), base.digest, name=version.task)
        rank = export_lora(probes.bank, version.task, folder / version.task, manifest=manifest, task_type="CAUSAL_LM",
                           ranks=VLLM_RANKS)  # fmt: skip
        probes.bank.remove(version.task)
        rows.append({"task": version.task, "adapter": version.task, "version": version.version, "rank": rank,
                     "answer_tokens": manifest.answer_tokens})  # fmt: skip
        console.print(f"wrote {version_label(version)} to {folder / version.task}", highlight=False, markup=False,
                      soft_wrap=True)  # fmt: skip
    command = _command(base, rows)
    table = {"library": library, "base": base.record(), "router": _router(registry, library), "experts": rows,
             "left_out": others}  # fmt: skip
    write_atomically(folder / TABLE, json.dumps(finite(table), indent=1).encode())
    write_atomically(folder / COMMAND, f'#!/bin/sh\ncd "$(dirname "$0")"\nexec {command}\n'.encode())
    (folder / COMMAND).chmod(0o755)
    if others:
        what = f"left out, for they have a head for classes or options: {', '.join(others)}"
        console.print(what, highlight=False, markup=False, soft_wrap=True)
    console.print(f"serve them with {folder / COMMAND}:\n  {command}", highlight=False, markup=False, soft_wrap=True)


def _writes(registry: Registry, version: Version) -> bool:
    """Return whether an expert generates text."""
    return bool(registry.read_json(version, "expert.json")["kind"] in GENERATING_KINDS)


def _router(registry: Registry, library: str) -> str | None:
    """Return the URI of the library's router, whose answers name tasks; None if there is none."""
    routers = registry.routers(library)
    if not routers:
        return None
    router = max(routers, key=lambda each: (CHAMPION in each.aliases, each.version))
    return f"models:/{router.name}/{router.version}"


def _command(base: Base, rows: list[dict[str, Any]]) -> str:
    """Return the command of vLLM that serves the adapters beside it."""
    model = [base.id, "--revision", base.revision] if base.source == "hub" else [base.folder]
    quantised = ["--quantization", "bitsandbytes"] if base.quantize == "nf4" else []
    modules = [f"{row['task']}={row['adapter']}" for row in rows]
    rank = max(row["rank"] for row in rows)
    options = ["--enable-lora", "--max-loras", str(min(len(rows), 8)), "--max-cpu-loras", str(len(rows)),
               "--max-lora-rank", str(rank), "--lora-modules", *modules]  # fmt: skip
    return shlex.join(["vllm", "serve", *model, *quantised, *options])
