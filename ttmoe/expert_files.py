"""Expert files: ``expert.json`` says what an expert is, ``expert.safetensors`` holds its weights. Never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ttmoe.adapter import AdapterSpec, Group, count_parameters
from ttmoe.bank import Bank, Expert
from ttmoe.errors import InputError

EXPERT_FORMAT = 1
EXPERT_MANIFEST, EXPERT_WEIGHTS = "expert.json", "expert.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What ``expert.json`` says. ``cores`` gives for each group its method and the ordered shapes of its cores.

    Of an expert that writes, ``answer_tokens`` is the longest answer it was trained on, its end included; 0: not known.
    """

    task: str
    kind: str
    labels: tuple[str, ...]
    base: dict[str, Any]
    adapter: AdapterSpec
    cores: dict[str, Any]
    parameters: int
    spec_hash: str
    weights_digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    format: int = EXPERT_FORMAT
    answer_tokens: int = 0

    @property
    def classes(self) -> int:
        """The head's number of outputs: one score an option in multiple choice, none where text is written."""
        return 1 if self.kind == "choice" else len(self.labels)


def save_expert(expert: Expert, folder: Path, *, task: str, kind: str, labels: tuple[str, ...], base: dict[str, Any],
                spec_hash: str, metrics: dict[str, float], answer_tokens: int = 0) -> Manifest:  # fmt: skip
    """Write the two files into ``folder``; the manifest last, so a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: value.detach().cpu().contiguous() for name, value in expert.state_dict().items()})
    groups = expert.adapter.groups
    manifest = Manifest(task, kind, labels, base, expert.adapter.spec, _describe(expert), count_parameters(groups),
                        spec_hash, hashlib.sha256(data).hexdigest(), metrics,
                        answer_tokens=answer_tokens)  # fmt: skip
    write_whole(folder / EXPERT_WEIGHTS, data)
    write_whole(folder / EXPERT_MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True).encode())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an expert folder. Raises InputError when it is missing or not of this format."""
    path = folder / EXPERT_MANIFEST
    try:
        values = json.loads(path.read_text())
        found = values["format"]
        if found == EXPERT_FORMAT:
            adapter = {**values["adapter"], "targets": tuple(values["adapter"]["targets"])}
            read = {"labels": tuple(values["labels"]), "adapter": AdapterSpec(**adapter), "base": dict(values["base"])}
            manifest = Manifest(**{**values, **read})
            _ = manifest.base["digest"], manifest.base["id"], hash(manifest.task), int(manifest.answer_tokens)
            return manifest
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"no readable expert manifest ({error})", where=str(path),
                         fix="give a folder that holds expert.json and expert.safetensors") from error  # fmt: skip
    raise InputError(f"format {found!r} is not {EXPERT_FORMAT}", where=str(path), fix="use the ttmoe that wrote it")


def load_expert(bank: Bank, folder: Path, base_digest: str, name: str | None = None) -> Manifest:
    """Check an expert folder against its manifest and this base, then add it to the bank (as its task's name).

    Raises InputError that names what differs (base, digest of the weights, core shapes, a value that is not finite);
    then the bank is as it was.
    """
    manifest = read_manifest(folder)
    where = str(folder)
    if manifest.base["digest"] != base_digest:
        raise InputError(f"expert {manifest.task!r} was trained on base {manifest.base['id']} "
                         f"({manifest.base['digest'][:12]}), not on this one ({base_digest[:12]})",
                         where=where, fix="load the base it was trained on")  # fmt: skip
    name = name or manifest.task
    bank.require_free(name)
    weights = _checked_weights(folder, manifest)
    expert = _filled(_draft(bank, manifest, where), weights, manifest, where)
    bank.attach(name, expert.requires_grad_(False))
    return manifest


def _draft(bank: Bank, manifest: Manifest, where: str) -> Expert:
    try:
        return bank.draft(manifest.adapter, manifest.classes)
    except InputError as error:
        raise InputError(f"the adapter does not fit this base: {error.what}", where=where, fix=error.fix) from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # a field of the wrong type
        raise InputError(f"the adapter cannot be read ({error})", where=where, fix="train the expert again") from error


def _checked_weights(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    path = folder / EXPERT_WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the weights cannot be read ({error})", where=str(path),
                         fix="train the expert again") from error  # fmt: skip
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.weights_digest:
        raise InputError(f"the weights were altered or cut: sha256 {digest[:12]}, "
                         f"recorded {manifest.weights_digest[:12]}",
                         where=str(path), fix="restore the file, or train the expert again")  # fmt: skip
    try:
        return load(data)
    except SafetensorError as error:
        raise InputError(f"the weights are not a safetensors file ({error})", where=str(path),
                         fix="train the expert again") from error  # fmt: skip


def _filled(expert: Expert, weights: dict[str, torch.Tensor], manifest: Manifest, where: str) -> Expert:
    if json.loads(json.dumps(_describe(expert))) != json.loads(json.dumps(manifest.cores)):
        raise InputError(f"the cores do not fit: recorded {manifest.cores}, here {_describe(expert)}", where=where,
                         fix="the base's architecture, or the way shapes are chosen, has changed")  # fmt: skip
    mine = expert.state_dict()
    wrong = [key for key in mine.keys() | weights.keys()
             if key not in mine or key not in weights or mine[key].shape != weights[key].shape]  # fmt: skip
    if wrong:
        raise InputError(f"weights that are missing, unknown or of another shape: {', '.join(sorted(wrong))}",
                         where=where, fix="train it again")  # fmt: skip
    other = [key for key, value in weights.items() if value.dtype != mine[key].dtype]
    if other:
        raise InputError(f"weights that are not fp32: {', '.join(sorted(other))}", where=where, fix="train it again")
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"values that are not finite in {', '.join(sorted(broken))}", where=where,
                         fix="train it again")  # fmt: skip
    with torch.inference_mode(False):
        expert.load_state_dict(weights)
    return expert


def _describe(expert: Expert) -> dict[str, Any]:
    return {
        group.key: {"method": str(group.method), "sites": _site_lists(group),
                    "cores": [list(shape) for shape in group.method.core_shapes]}
        for group in expert.adapter.groups
    }  # fmt: skip


def _site_lists(group: Group) -> dict[str, list[int]]:
    """The layers of every path, in which ``*`` stands for the layer: short, for there may be hundreds."""
    lists: dict[str, list[int]] = {}
    for site in group.sites:
        lists.setdefault(site.path.replace(f".{site.layer}.", ".*.", 1), []).append(site.layer)
    return lists


def write_whole(path: Path, data: bytes) -> None:
    """Whole or not at all: a crash leaves the old file or none. Processes, of several hosts too, may do it at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
