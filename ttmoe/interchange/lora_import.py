"""Import of a PEFT LoRA adapter folder as an expert."""

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
from ttmoe.architectures import layer_path, role_of
from ttmoe.bank import Bank, Expert
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, read_manifest
from ttmoe.interchange.peft_files import HEAD_WEIGHTS, KEY_PREFIX, LORA_CONFIG, LORA_WEIGHTS
from ttmoe.interchange.scaling import require_plain_lora, scaling_of
from ttmoe.layer import linear_size

Factors = dict[str, dict[str, Tensor]]
"""By module path the factors ``A`` (rank, in) and ``B`` (out, rank)."""

_KEY = re.compile(re.escape(KEY_PREFIX) + r"(.+)\.lora_([AB])\.weight")


def import_lora(bank: Bank, folder: Path, name: str, *, classes: int | None = None, base_digest: str = "") -> Expert:
    """Add a PEFT LoRA adapter to the bank, frozen, as an expert of method ``lora``.

    The expert has one rank and one range of layers: modules of lower rank and layers without an adapter are filled with
    zeros. The scaling of each module is included in B. The head is read from ``head.safetensors``.

    Args:
        bank: The bank. It is unchanged if an error is raised.
        folder: The adapter's folder.
        name: Name of the expert in the bank.
        classes: Outputs of the head; required if the folder has no head, which then starts at zero.
        base_digest: Digest of the bank's base. It is compared with the base in ``expert.json``, if both are given.

    Returns:
        The expert.

    Raises:
        InputError: If the name is in use, a file is missing or does not fit the base, or an option of the adapter would
            make the expert another function than the adapter.
    """
    bank.require_unused_name(name)
    where = str(folder)
    config = _read_config(folder)
    require_plain_lora(config, where=str(folder / LORA_CONFIG))
    if base_digest and (folder / EXPERT_MANIFEST).is_file():
        base = read_manifest(folder).base
        if base["digest"] != base_digest:
            raise InputError(f"the adapter is for base {base['id']} ({base['digest'][:12]}), "
                             f"but the loaded base is {base_digest[:12]}",
                             where=where, fix="load the base that the adapter was trained on")  # fmt: skip
    factors = _read_factors(bank.model, folder, config)
    head = _read_tensors(folder / HEAD_WEIGHTS) if (folder / HEAD_WEIGHTS).is_file() else None
    classes = _class_count(head, classes, where)
    expert = bank.build_expert(_covering_spec(bank.model, factors, float(config.get("lora_dropout") or 0.0)), classes)
    _load_weights(expert, factors, head, where)
    return bank.attach(name, expert.requires_grad_(False))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / LORA_CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read the PEFT adapter ({error})", where=str(folder / LORA_CONFIG),
                         fix=f"give a folder with {LORA_CONFIG} and {LORA_WEIGHTS}") from error  # fmt: skip


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read finite tensors, as fp32."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the weights ({error})", where=str(path),
                         fix="save the adapter again, as safetensors") from error  # fmt: skip
    invalid = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if invalid:
        raise InputError(f"weights that are not finite: {', '.join(invalid)}", where=str(path), fix="train it again")
    return {key: value.float() for key, value in tensors.items()}


def _read_factors(model: nn.Module, folder: Path, config: dict[str, Any]) -> Factors:
    """Read the factors by path inside the body, apply the scaling, and check each pair against its module."""
    where = str(folder / LORA_WEIGHTS)
    factors: Factors = {}
    for key, value in _read_tensors(folder / LORA_WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if not match:
            raise InputError(f"{key!r} is not a factor of a linear map", where=where,
                             fix="use an adapter with LoRA on linear maps of the layers only")  # fmt: skip
        factors.setdefault(match[1], {})[match[2]] = value
    if not factors:
        raise InputError("the adapter contains no factors", where=where, fix="train it again")
    for path, pair in factors.items():
        _require_fit(model, path, pair, where)
        pair["B"] = pair["B"] * scaling_of(config, path, len(pair["A"]), where=str(folder / LORA_CONFIG))
    return {_body_path(model, path): pair for path, pair in factors.items()}


def _body_path(model: nn.Module, path: str) -> str:
    """Return the path inside the body, for a path in the body or in a model with a language head."""
    prefix = f"{model.base_model_prefix}."
    return path[len(prefix) :] if path.startswith(prefix + layer_path(model)) else path


def _require_fit(model: nn.Module, path: str, pair: dict[str, Tensor], where: str) -> None:
    body_path = _body_path(model, path)
    modules = dict(model.named_modules())
    size = linear_size(modules[body_path]) if body_path in modules else None
    if size is None or not body_path.startswith(layer_path(model) + "."):
        raise InputError(f"the base has no linear map {path!r} in its layers", where=where,
                         fix="use an adapter of this base that adapts only its layers")  # fmt: skip
    shapes = {side: tuple(value.shape) for side, value in pair.items()}
    rank = len(pair.get("A", ()))
    if not rank or shapes != {"A": (rank, size[0]), "B": (size[1], rank)}:
        raise InputError(f"the factors of {path!r} have shapes {shapes}, but the map is {size[0]} to {size[1]}",
                         where=where, fix="use an adapter of this base")  # fmt: skip


def _covering_spec(model: nn.Module, factors: Factors, dropout: float) -> AdapterSpec:
    """Return a spec that covers all modules: the highest rank, and every path in every layer of the range."""
    start = len(layer_path(model)) + 1
    locations = [path[start:].split(".", 1) for path in factors]
    layers = sorted({int(layer) for layer, _ in locations})
    targets = tuple(dict.fromkeys(role_of(model, inner) or re.escape(inner) for _, inner in locations))
    rank = max(len(pair["A"]) for pair in factors.values())
    return AdapterSpec("lora", targets, layers[0], layers[-1], rank, alpha=float(rank), dropout=dropout)


def _class_count(head: dict[str, Tensor] | None, classes: int | None, where: str) -> int:
    head_classes = len(head["weight"]) if head and "weight" in head else None
    if head_classes is None and classes is None:
        raise InputError("the adapter has no head", where=where, fix="give the number of classes")
    if head_classes is not None and classes not in (None, head_classes):
        raise InputError(f"the adapter's head has {head_classes} classes, not {classes}", where=where,
                         fix="leave classes out")  # fmt: skip
    return cast(int, classes if head_classes is None else head_classes)


def _load_weights(expert: Expert, factors: Factors, head: dict[str, Tensor] | None, where: str) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for group in expert.adapter.groups:
            a, b = expert.adapter.cores[group.key].parameters()
            a.zero_()
            b.zero_()
            for i, site in enumerate(group.sites):
                if pair := factors.get(site.path):
                    rank = len(pair["A"])
                    a[i, :rank], b[i, :, :rank] = pair["A"], pair["B"]
        if head is not None:
            expected = {key: tuple(value.shape) for key, value in expert.head.state_dict().items()}
            if {key: tuple(value.shape) for key, value in head.items()} != expected:
                raise InputError("the head does not fit this base", where=f"{where}/{HEAD_WEIGHTS}",
                                 fix=f"give a head with the shapes {expected}")  # fmt: skip
            expert.head.load_state_dict(head)
