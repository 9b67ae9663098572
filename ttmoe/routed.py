"""The routed model: texts in; for each the expert that the router picked, and that expert's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import Choice, Input, Item, collate, encode_inputs, pad_id_of
from ttmoe.errors import InputError
from ttmoe.expert_files import Manifest, load_expert
from ttmoe.features import router_features
from ttmoe.router import LinearRouter, load_router
from ttmoe.scoring import score


@dataclass(frozen=True)
class Prediction:
    """One answer: the ``task`` that was routed to, its ``label``, and how sure the two steps are (0 to 1).

    ``confidence`` is the expert's probability of the label, ``routing`` the router's probability of the expert.
    """

    task: str
    label: str
    confidence: float
    routing: float


class RoutedModel:
    """A whole library behind one call. Nothing in it is trainable, and equal inputs give equal answers."""

    def __init__(
        self,
        bank: Bank,
        router: LinearRouter,
        manifests: dict[str, Manifest],
        tokenizer: Any,
        max_length: int,
    ) -> None:
        self.bank, self.router, self.manifests = bank.eval(), router.eval().to(bank.device), manifests
        self.tokenizer, self.max_length = tokenizer, max_length

    @classmethod
    def load(cls, folder: Path, base: Base, device: str = "cpu") -> RoutedModel:
        """Load a router folder with its experts in ``experts/<task>/``.

        Raises InputError where the base or an expert is not the one that the router's lock names.
        """
        router, manifest = load_router(folder)
        bank = Bank(load_body(base, device), base.pooling)
        experts = {}
        for task, spec_hash in manifest["lock"].items():
            experts[task] = load_expert(bank, folder / "experts" / task, base.digest)
            if experts[task].spec_hash != spec_hash:
                raise InputError(f"expert {task!r} is {experts[task].spec_hash[:12]}, "
                                 f"the router was trained for {spec_hash[:12]}",
                                 where=str(folder), fix="run the library again: the router is stale")  # fmt: skip
        return cls(bank, router, experts, load_tokenizer(base), base.max_length)

    def predict(self, inputs: Sequence[Input], batch_size: int = 64) -> list[Prediction]:
        """Answer every input, in order; rows of different tasks share a batch."""
        if any(not _text_of(i).strip() for i in inputs):
            raise InputError("an empty text has no answer", where="predict", fix="leave empty inputs out")
        items = encode_inputs(self.tokenizer, inputs, self.max_length)
        by_length = sorted(range(len(items)), key=lambda i: items[i].length)
        answers: dict[int, Prediction] = {}
        for start in range(0, len(items), batch_size):
            rows = by_length[start : start + batch_size]
            answers.update(zip(rows, self._answer([items[i] for i in rows]), strict=True))
        return [answers[i] for i in range(len(inputs))]

    @torch.no_grad()
    def _answer(self, items: list[Item]) -> list[Prediction]:
        pad_id = pad_id_of(self.tokenizer)
        wholes = collate([item.whole for item in items], pad_id, self.bank.device)
        names, shares = self.router.route(router_features(self.bank.model, wholes, self.router.features))
        scores = score(self.bank, items, names, pad_id)
        return [self._describe(*row) for row in zip(names, shares.amax(-1).tolist(), scores, strict=True)]

    def _describe(self, name: str, routing: float, scores: Tensor) -> Prediction:
        manifest = self.manifests[name]
        if manifest.kind == "choice" and len(scores) == 1:  # a plain text: there is nothing to choose among
            return Prediction(name, "", float(scores[0].sigmoid()), routing)
        shares = scores.softmax(-1)
        best = int(shares.argmax())
        label = str(best) if manifest.kind == "choice" else manifest.labels[best]
        return Prediction(name, label, float(shares[best]), routing)


def _text_of(row: Input) -> str:
    return row.text if isinstance(row, Choice) else row if isinstance(row, str) else row[0]
