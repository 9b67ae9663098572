"""Save and load an expert as two files: ``expert.json``, its manifest, and ``expert.safetensors``, its weights.

No file is pickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ttmoe.adapter import AdapterSpec, Group, count_parameters
from ttmoe.atomic_write import write_atomically
from ttmoe.bank import Bank, Expert
from ttmoe.errors import InputError

EXPERT_FORMAT = 1
EXPERT_MANIFEST, EXPERT_WEIGHTS = "expert.json", "expert.safetensors"


_RETRAIN = "train the expert again"


@dataclass(frozen=True)
class Manifest:
    """The content of ``expert.json``.

    Attributes:
        task: Name of the task.
        kind: Kind of the task: ``text`` (``classify`` in files of ``TextBank``), ``pair``, ``choice``, ``generate`` or
            ``chat``.
        labels: Label names in the order of the head's outputs.
        base: The base: ``Base.record()``.
        adapter: Spec of the adapter.
        cores: For each group of sites its method, its layers by path, and the ordered shapes of its cores.
        parameters: Trainable parameters of the adapter, without the head.
        spec_hash: Hash of the spec that the expert was trained from; empty for one trained in a notebook.
        weights_digest: SHA-256 of ``expert.safetensors``.
        metrics: Metrics of the training.
        format: Version of the file format.
        answer_tokens: Longest answer of the training rows of an expert that generates text, in tokens, the end token
            included; 0 if unknown.
        chat_template: The template in which an expert for conversations was trained; "" for others.
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
    chat_template: str = ""

    @property
    def classes(self) -> int:
        """Number of outputs of the head: 1 (a score per option) for ``choice``, 0 for ``generate`` and ``chat``."""
        return 1 if self.kind == "choice" else len(self.labels)


def save_expert(expert: Expert, folder: Path, *, task: str, kind: str, labels: tuple[str, ...], base: dict[str, Any],
                spec_hash: str, metrics: dict[str, float], answer_tokens: int = 0,
                chat_template: str = "") -> Manifest:  # fmt: skip
    """Write an expert's two files into ``folder``, which is created if missing.

    The manifest is written last: a folder that contains one is complete. ``Manifest`` describes the arguments.

    Returns:
        The manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: value.detach().cpu().contiguous() for name, value in expert.state_dict().items()})
    adapter = expert.adapter
    manifest = Manifest(task, kind, labels, base, adapter.spec, _describe_cores(expert),
                        count_parameters(adapter.groups), spec_hash, hashlib.sha256(data).hexdigest(), metrics,
                        answer_tokens=answer_tokens, chat_template=chat_template)  # fmt: skip
    values = asdict(manifest)
    if not chat_template:
        del values["chat_template"]
    write_atomically(folder / EXPERT_WEIGHTS, data)
    write_atomically(folder / EXPERT_MANIFEST, json.dumps(values, indent=1, sort_keys=True).encode())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an expert folder.

    Raises:
        InputError: If the manifest is missing, cannot be parsed or has another format version.
    """
    path = folder / EXPERT_MANIFEST
    try:
        values = json.loads(path.read_text())
        version = values["format"]
        if version == EXPERT_FORMAT:
            adapter = {**values["adapter"], "targets": tuple(values["adapter"]["targets"])}
            typed = {"labels": tuple(values["labels"]), "adapter": AdapterSpec(**adapter), "base": dict(values["base"])}
            manifest = Manifest(**{**values, **typed})
            # Fails here, not later, if a field is missing or has the wrong type.
            _ = manifest.base["digest"], manifest.base["id"], hash(manifest.task), int(manifest.answer_tokens)
            _ = manifest.chat_template.encode()
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"cannot read the expert manifest ({error})", where=str(path),
                         fix=f"give a folder with {EXPERT_MANIFEST} and {EXPERT_WEIGHTS}") from error  # fmt: skip
    raise InputError(f"the manifest has format {version!r}, expected {EXPERT_FORMAT}", where=str(path),
                     fix="use the version of ttmoe that wrote it")  # fmt: skip


def load_expert(bank: Bank, folder: Path, base_digest: str, name: str | None = None) -> Manifest:
    """Verify an expert folder and add its expert to the bank, frozen.

    Args:
        bank: The bank. It is unchanged if an error is raised.
        folder: A folder written by ``save_expert``.
        base_digest: Digest of the bank's base, which must be the base that the expert was trained on.
        name: Name of the expert in the bank; by default its task's name.

    Returns:
        The manifest of the expert.

    Raises:
        InputError: If a file is missing or altered, the base or the shapes of the cores differ, a weight is not finite,
            or the name is taken.
    """
    manifest = read_manifest(folder)
    where = str(folder)
    if manifest.base["digest"] != base_digest:
        raise InputError(f"expert {manifest.task!r} was trained on base {manifest.base['id']} "
                         f"({manifest.base['digest'][:12]}), but the loaded base is {base_digest[:12]}",
                         where=where, fix="load the base that the expert was trained on")  # fmt: skip
    name = name or manifest.task
    bank.require_unused_name(name)
    weights = _read_weights(folder, manifest)
    expert = _build_expert(bank, manifest, where)
    _load_weights(expert, weights, manifest, where)
    bank.attach(name, expert.requires_grad_(False))
    return manifest


def _build_expert(bank: Bank, manifest: Manifest, where: str) -> Expert:
    try:
        return bank.build_expert(manifest.adapter, manifest.classes)
    except InputError as error:
        raise InputError(f"the adapter does not fit this base: {error.what}", where=where, fix=error.fix) from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # a field of the wrong type
        raise InputError(f"cannot build the adapter of the manifest ({error})", where=where, fix=_RETRAIN) from error


def _read_weights(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Read the weights and verify their digest."""
    path = folder / EXPERT_WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the weights ({error})", where=str(path), fix=_RETRAIN) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.weights_digest:
        raise InputError(f"the weights were altered or truncated: their sha256 is {digest[:12]}, "
                         f"the manifest has {manifest.weights_digest[:12]}",
                         where=str(path), fix=f"restore the file, or {_RETRAIN}")  # fmt: skip
    try:
        return load(data)
    except SafetensorError as error:
        raise InputError(f"the weights are not a safetensors file ({error})", where=str(path),
                         fix=_RETRAIN) from error  # fmt: skip


def _load_weights(expert: Expert, weights: dict[str, torch.Tensor], manifest: Manifest, where: str) -> None:
    """Copy the weights into the expert after checking the cores' description, keys, shapes, dtypes and values."""
    cores = _describe_cores(expert)
    if json.loads(json.dumps(cores)) != json.loads(json.dumps(manifest.cores)):
        raise InputError(f"the cores do not match: the manifest has {manifest.cores}, this base gives {cores}",
                         where=where, fix=f"{_RETRAIN}: the architecture or the choice of shapes changed")  # fmt: skip
    expected = expert.state_dict()
    common = expected.keys() & weights.keys()
    mismatched = (expected.keys() ^ weights.keys()) | {k for k in common if expected[k].shape != weights[k].shape}
    other_dtype = {key for key in common if weights[key].dtype != expected[key].dtype}
    # torch has no isfinite for some dtypes, which are reported as not fp32.
    not_finite = {key for key in common - other_dtype if not torch.isfinite(weights[key]).all()}
    for problem, keys in (
        ("missing, unexpected or of another shape", mismatched),
        ("not fp32", other_dtype),
        ("not finite", not_finite),
    ):
        if keys:
            raise InputError(f"weights that are {problem}: {', '.join(sorted(keys))}", where=where, fix=_RETRAIN)
    with torch.inference_mode(False):
        expert.load_state_dict(weights)


def _describe_cores(expert: Expert) -> dict[str, Any]:
    return {
        group.key: {"method": str(group.method), "sites": _layers_by_path(group),
                    "cores": [list(shape) for shape in group.method.core_shapes]}
        for group in expert.adapter.groups
    }  # fmt: skip


def _layers_by_path(group: Group) -> dict[str, list[int]]:
    """List the layers of each path, with ``*`` in place of the layer: one short entry for hundreds of sites."""
    layers: dict[str, list[int]] = {}
    for site in group.sites:
        layers.setdefault(site.path.replace(f".{site.layer}.", ".*.", 1), []).append(site.layer)
    return layers
