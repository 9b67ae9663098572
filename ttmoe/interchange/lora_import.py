"""A PEFT LoRA adapter folder as an expert."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank, Expert
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, read_manifest
from ttmoe.interchange.peft_files import CONFIG, HEAD, LORA_WEIGHTS, ROOT
from ttmoe.interchange.scaling import require_plain, scaling_of
from ttmoe.layer import linear_size
from ttmoe.targets import layer_path, role_of

Factors = dict[str, dict[str, Tensor]]
"""For each module's path its A (rank, in) and B (out, rank)."""

_KEY = re.compile(re.escape(ROOT) + r"(.+)\.lora_([AB])\.weight")


def import_lora(bank: Bank, folder: Path, name: str, *, classes: int | None = None, base_digest: str = "") -> Expert:
    """Add a PEFT LoRA adapter of this base to the bank, frozen, as an expert of method ``lora``.

    Modules of lower rank, and layers in between that the adapter leaves out, are filled with zeros; each module's scale
    goes into B. The head comes from ``head.safetensors``; without one it starts at zero with ``classes`` outputs. Where
    the folder says which base it is for (``expert.json``), ``base_digest``, if given, must be that one's. Raises
    InputError for anything that would make the expert another function than the adapter; the bank is then as it was.
    """
    bank.require_free(name)
    where = str(folder)
    config = _read_config(folder)
    require_plain(config, where=str(folder / CONFIG))
    if base_digest and (folder / EXPERT_MANIFEST).is_file():
        base = read_manifest(folder).base
        if base["digest"] != base_digest:
            raise InputError(f"the adapter is for base {base['id']} ({base['digest'][:12]}), not for this one "
                             f"({base_digest[:12]})", where=where, fix="load the base it was trained on")  # fmt: skip
    modules = _read_factors(bank.model, folder, config)
    head = _read_tensors(folder / HEAD) if (folder / HEAD).is_file() else None
    classes = _classes(head, classes, where)
    expert = bank.draft(_spec(bank.model, modules, float(config.get("lora_dropout") or 0.0)), classes)
    _fill(expert, modules, head, where)
    return bank.attach(name, expert.requires_grad_(False))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"no readable PEFT adapter ({error})", where=str(folder / CONFIG),
                         fix=f"give a folder that holds {CONFIG} and {LORA_WEIGHTS}") from error  # fmt: skip


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights cannot be read ({error})", where=str(path),
                         fix="save the adapter again, as safetensors") from error  # fmt: skip
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"values that are not finite in {', '.join(broken)}", where=str(path), fix="train it again")
    return {key: value.float() for key, value in tensors.items()}


def _read_factors(model: nn.Module, folder: Path, config: dict[str, Any]) -> Factors:
    """The factors by path inside the body, scaled; each checked against the module it is for."""
    where = str(folder / LORA_WEIGHTS)
    found: Factors = {}
    for key, value in _read_tensors(folder / LORA_WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if not match:
            raise InputError(f"{key!r} is not a factor of a linear map", where=where,
                             fix="only LoRA on linear maps of the layers can join a bank")  # fmt: skip
        found.setdefault(match[1], {})[match[2]] = value
    if not found:
        raise InputError("the adapter holds no factors", where=where, fix="train it again")
    for path, pair in found.items():
        _require_fit(model, path, pair, where)
        pair["B"] = pair["B"] * scaling_of(config, path, len(pair["A"]), where=str(folder / CONFIG))
    return {_inside(model, path): pair for path, pair in found.items()}


def _inside(model: nn.Module, path: str) -> str:
    """The path in the body, of a path in it or in a model with a head."""
    prefix = f"{model.base_model_prefix}."
    return path[len(prefix) :] if path.startswith(prefix + layer_path(model)) else path


def _require_fit(model: nn.Module, path: str, pair: dict[str, Tensor], where: str) -> None:
    inside = _inside(model, path)
    modules = dict(model.named_modules())
    size = linear_size(modules[inside]) if inside in modules else None
    if size is None or not inside.startswith(layer_path(model) + "."):
        raise InputError(f"the base has no linear map {path!r} in its layers", where=where,
                         fix="give an adapter of this base that adapts its layers alone")  # fmt: skip
    shapes = {side: tuple(value.shape) for side, value in pair.items()}
    rank = len(pair.get("A", ()))
    if not rank or shapes != {"A": (rank, size[0]), "B": (size[1], rank)}:
        raise InputError(f"factors of {path!r} have shapes {shapes}, the map is {size[0]} to {size[1]}", where=where,
                         fix="give an adapter of this base")  # fmt: skip


def _spec(model: nn.Module, modules: Factors, dropout: float) -> AdapterSpec:
    """The form that covers all modules: the highest rank, every path in every layer from the lowest to the top one."""
    start = len(layer_path(model)) + 1
    places = [path[start:].split(".", 1) for path in modules]
    layers = sorted({int(layer) for layer, _ in places})
    targets = tuple(dict.fromkeys(role_of(model, inner) or re.escape(inner) for _, inner in places))
    rank = max(len(pair["A"]) for pair in modules.values())
    return AdapterSpec("lora", targets, layers[0], layers[-1], rank, alpha=float(rank), dropout=dropout)


def _classes(head: dict[str, Tensor] | None, classes: int | None, where: str) -> int:
    given = len(head["weight"]) if head and "weight" in head else None
    if given is None and classes is None:
        raise InputError("the adapter comes without a head", where=where, fix="say how many classes it is to have")
    if given is not None and classes not in (None, given):
        raise InputError(f"the adapter's head has {given} classes, not {classes}", where=where, fix="leave classes out")
    return cast(int, classes if given is None else given)


def _fill(expert: Expert, modules: Factors, head: dict[str, Tensor] | None, where: str) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for group in expert.adapter.groups:
            cores = list(expert.adapter.cores[group.key].parameters())
            for core in cores:
                core.zero_()
            for i, site in enumerate(group.sites):
                if pair := modules.get(site.path):
                    rank = len(pair["A"])
                    cores[0][i, :rank], cores[1][i, :, :rank] = pair["A"], pair["B"]
        mine = expert.head.state_dict()
        if head is not None:
            if {k: v.shape for k, v in head.items()} != {k: v.shape for k, v in mine.items()}:
                raise InputError("the head does not fit this base", where=f"{where}/{HEAD}",
                                 fix=f"it needs {({k: tuple(v.shape) for k, v in mine.items()})}")  # fmt: skip
            expert.head.load_state_dict(head)
