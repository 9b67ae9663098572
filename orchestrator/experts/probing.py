"""Probe texts through experts on one base: alone, and in one batch with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.registry import Version
from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import Choice, Completion, Input, encode_inputs, pad_id_of
from ttmoe.expert_files import Manifest, load_expert
from ttmoe.scoring import score

TEXTS = ("what a wonderful day", "the parcel never arrived and nobody answers", "Who wrote it, and when?", "no")
OTHERS = ("it could not be better", "I want my money back", "Nobody knows.", "yes")


class VersionMismatchError(Exception):
    """A registered expert is not what the registry says, or does not answer as it should."""


def probe_inputs(kind: str) -> list[Input]:
    """Inputs of the form that an expert of this kind reads."""
    if kind == "choice":
        return [Choice(text, (other, "both", "neither")) for text, other in zip(TEXTS, OTHERS, strict=True)]
    if kind == "generate":
        return [Completion(text, other) for text, other in zip(TEXTS, OTHERS, strict=True)]
    return list(zip(TEXTS, OTHERS, strict=True)) if kind == "pair" else list(TEXTS)


class ProbeBank:
    """One base with an empty bank on it, and the scores that each expert gave when it was there alone."""

    def __init__(self, bank: Bank, tokenizer: Any, base: Base) -> None:
        self.bank, self.tokenizer, self.base = bank.eval(), tokenizer, base
        self.alone: dict[str, list[Tensor]] = {}
        self.kinds: dict[str, str] = {}

    @classmethod
    def open(cls, base: Base) -> ProbeBank:
        """Load the base."""
        return cls(Bank(load_body(base), base.pooling), load_tokenizer(base), base)

    @property
    def tolerance(self) -> float:
        """How far scores may differ between batches: by rounding, in the base's own precision."""
        return 1e-5 if self.base.dtype == "float32" else 5e-2

    def probe_alone(self, version: Version, folder: Path) -> None:
        """Load one expert, hold it against the registry and keep its scores; the bank is empty again afterwards.

        Raises InputError for files that cannot be loaded, and VersionFaultError for what differs.
        """
        label = f"{version.task} v{version.version}"
        manifest = load_expert(self.bank, folder, self.base.digest, name=label)
        try:
            require_registered(manifest, version)
            self.kinds[label] = manifest.kind
            scores = self.scores(label)
        finally:
            self.bank.remove(label)
        if not all(torch.isfinite(row).all() for row in scores):
            raise VersionMismatchError("scores that are not finite")
        self.alone[label] = scores

    def probe_together(self, folders: dict[str, Path]) -> dict[str, str]:
        """Load all of these, which were probed alone, and send one mixed batch through them: what differs, by name."""
        for label, folder in folders.items():
            load_expert(self.bank, folder, self.base.digest, name=label)
        try:
            mixed = self._mixed(list(folders))
        finally:
            for label in folders:
                self.bank.remove(label)
        differ = {label: _distance(self.alone[label], mixed[label]) for label in folders}
        return {
            label: f"FAILED: beside other experts its scores differ by {far:.1e}"
            for label, far in differ.items()
            if not far <= self.tolerance
        }

    @torch.no_grad()
    def scores(self, name: str) -> list[Tensor]:
        """An expert's scores of its probes."""
        items = encode_inputs(self.tokenizer, probe_inputs(self.kinds[name]), self.base.max_length)
        return score(self.bank, items, name, pad_id_of(self.tokenizer))

    @torch.no_grad()
    def _mixed(self, names: list[str]) -> dict[str, list[Tensor]]:
        if not names:
            return {}
        rows = [
            (name, row) for group in zip(*(self._named(name) for name in names), strict=True) for name, row in group
        ]
        items = encode_inputs(self.tokenizer, [row for _, row in rows], self.base.max_length)
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for (name, _), scores in zip(
            rows, score(self.bank, items, [name for name, _ in rows], pad_id_of(self.tokenizer)), strict=True
        ):
            found[name].append(scores)
        return found

    def _named(self, name: str) -> list[tuple[str, Input]]:
        return [(name, probe) for probe in probe_inputs(self.kinds[name])]


def require_registered(manifest: Manifest, version: Version) -> None:
    """Raise VersionFaultError where an expert's manifest is not what was registered."""
    tags = version.tags
    for what, here, recorded in (
        ("spec hash", manifest.spec_hash, version.spec_hash),
        ("weights", manifest.weights_digest, tags.get("weights_digest")),
        ("base", manifest.base["digest"], tags.get("base_digest")),
        ("number of parameters", str(manifest.parameters), tags.get("parameters")),
        ("task", manifest.task, version.task),
    ):
        if here != recorded:
            raise VersionMismatchError(f"its {what} is {here[:12]}, registered was {str(recorded)[:12]}")


def _distance(alone: list[Tensor], mixed: list[Tensor]) -> float:
    """The largest difference, as a share of the largest score where that is above one."""
    pairs = list(zip(alone, mixed, strict=True))
    size = max(1.0, *(float(a.abs().max()) for a, _ in pairs))
    return max(float((a - b).abs().max()) for a, b in pairs) / size
