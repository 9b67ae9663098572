"""Run probe texts through experts on one base: each expert alone, and all of them in one batch."""

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
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.scoring import score

TEXTS = ("what a wonderful day", "the parcel never arrived and nobody answers", "Who wrote it, and when?", "no")
SECOND_TEXTS = ("it could not be better", "I want my money back", "Nobody knows.", "yes")


class VersionMismatchError(Exception):
    """A registered expert that differs from its record in the registry, or has wrong scores."""


def probe_inputs(kind: str) -> list[Input]:
    """Return four inputs for an expert of this kind: ``text``, ``pair``, ``choice``, ``generate`` or ``chat``."""
    pairs = list(zip(TEXTS, SECOND_TEXTS, strict=True))
    if kind == "choice":
        return [Choice(text, (second, "both", "neither")) for text, second in pairs]
    if kind in GENERATING_KINDS:  # scores of a plain answer need no chat template
        return [Completion(text, second) for text, second in pairs]
    return list(pairs) if kind == "pair" else list(TEXTS)


class ProbeBank:
    """An empty bank on one base, and the scores of the experts that were probed on it.

    Attributes:
        bank: The bank.
        tokenizer: The base's tokenizer.
        base: The base.
        alone: Scores of each expert when it was in the bank alone, by label (``version_label``).
        kinds: Kind of each expert, by its name in the bank.
    """

    def __init__(self, bank: Bank, tokenizer: Any, base: Base) -> None:
        self.bank, self.tokenizer, self.base = bank.eval(), tokenizer, base
        self.alone: dict[str, list[Tensor]] = {}
        self.kinds: dict[str, str] = {}

    @classmethod
    def open(cls, base: Base) -> ProbeBank:
        """Load the base and its tokenizer."""
        return cls(Bank(load_body(base), base.pooling), load_tokenizer(base), base)

    @property
    def tolerance(self) -> float:
        """Allowed relative difference of scores between batches: the rounding error in the base's dtype."""
        return 1e-5 if self.base.dtype == "float32" else 5e-2

    def probe_alone(self, version: Version, folder: Path) -> None:
        """Load one expert, compare it with the registry, keep its scores and remove it from the bank.

        Args:
            version: The registered version.
            folder: Local folder of its files.

        Raises:
            InputError: If the files cannot be loaded.
            VersionMismatchError: If they differ from the registry's record, or the scores are not finite.
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
            raise VersionMismatchError("its scores are not finite")
        self.alone[label] = scores

    def probe_together(self, folders: dict[str, Path]) -> dict[str, str]:
        """Load experts that were probed alone, run all probes in one batch, and compare the scores.

        Args:
            folders: Local folder of each expert, by label.

        Returns:
            A message for each expert whose scores differ by more than ``tolerance``, by label.
        """
        for label, folder in folders.items():
            load_expert(self.bank, folder, self.base.digest, name=label)
        try:
            mixed = self._mixed_scores(list(folders))
        finally:
            for label in folders:
                self.bank.remove(label)
        distances = {label: _distance(self.alone[label], mixed[label]) for label in folders}
        return {
            label: f"FAILED: in a batch with other experts its scores differ by {distance:.1e}"
            for label, distance in distances.items()
            if not distance <= self.tolerance
        }

    @torch.no_grad()
    def scores(self, name: str) -> list[Tensor]:
        """Return the scores of a loaded expert for each of its probe inputs."""
        items = encode_inputs(self.tokenizer, probe_inputs(self.kinds[name]), self.base.max_length)
        return score(self.bank, items, name, pad_id_of(self.tokenizer))

    @torch.no_grad()
    def _mixed_scores(self, names: list[str]) -> dict[str, list[Tensor]]:
        """Return the scores by expert, from one batch in which the experts' probes alternate."""
        if not names:
            return {}
        rows = [row for group in zip(*(probe_inputs(self.kinds[name]) for name in names), strict=True) for row in group]
        experts = names * (len(rows) // len(names))
        items = encode_inputs(self.tokenizer, rows, self.base.max_length)
        scores = score(self.bank, items, experts, pad_id_of(self.tokenizer))
        return {name: scores[i :: len(names)] for i, name in enumerate(names)}


def require_registered(manifest: Manifest, version: Version) -> None:
    """Raise VersionMismatchError if a manifest differs from the registered version."""
    tags = version.tags
    for field, value, registered in (
        ("spec hash", manifest.spec_hash, version.spec_hash),
        ("weights digest", manifest.weights_digest, tags.get("weights_digest")),
        ("base digest", manifest.base["digest"], tags.get("base_digest")),
        ("number of parameters", str(manifest.parameters), tags.get("parameters")),
        ("task", manifest.task, version.task),
    ):
        if value != registered:
            raise VersionMismatchError(f"its {field} is {value[:12]}, registered is {str(registered)[:12]}")


def _distance(alone: list[Tensor], mixed: list[Tensor]) -> float:
    """Return the largest difference of two lists of scores, relative to the largest score if that is above 1."""
    pairs = list(zip(alone, mixed, strict=True))
    scale = max(1.0, *(float(a.abs().max()) for a, _ in pairs))
    return max(float((a - b).abs().max()) for a, b in pairs) / scale
