"""The routed model: texts in; for each the expert that the router picked, and that expert's answer.

What the router's reading of the base has computed is not computed again: the experts start from the hidden state up to
which nothing differs. Where the router reads no layer that an expert adapts, the whole answer is one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import Input, Item, collate, encode_inputs, pad_id_of
from ttmoe.errors import InputError
from ttmoe.expert_files import Manifest, load_expert
from ttmoe.features import pool_states
from ttmoe.generation import MOST_TOKENS, GeneratedText, generate, prompt_of
from ttmoe.router import Router, load_router
from ttmoe.scoring import score

UNKNOWN = "unknown"  # no task may be called so


@dataclass(frozen=True)
class Prediction:
    """One answer: the ``task`` that was routed to, its ``label``, and how sure the two steps are (0 to 1).

    ``confidence`` is the expert's probability of the label, ``routing`` the router's, calibrated, of the expert.
    ``scores`` are the probabilities of all the expert's labels (of a choice: of the options' numbers). An expert that
    writes gives its text for a label, and no scores. A text that is like none of the library's tasks has the task
    ``unknown``, no label and no scores.
    """

    task: str
    label: str
    confidence: float
    routing: float
    scores: dict[str, float] = field(default_factory=dict)


class RoutedModel:
    """A whole library behind one call. Nothing in it is trainable, and equal inputs give equal answers."""

    def __init__(self, bank: Bank, router: Router, manifests: dict[str, Manifest], tokenizer: Any,
                 max_length: int) -> None:  # fmt: skip
        self.bank, self.router, self.manifests = bank.eval(), router.eval().to(bank.device), manifests
        if familiarity := router.familiarity:  # half precision is for the file: to widen it anew takes every batch long
            familiarity.basis = familiarity.basis.float()
        self.tokenizer, self.max_length, self.pad_id = tokenizer, max_length, pad_id_of(tokenizer)
        self._layers = len(bank.trunk(0).layers)
        self._read = router.features.indexes(self._layers)

    @classmethod
    def load(cls, folder: Path, base: Base, device: str = "cpu") -> RoutedModel:
        """Load a router folder with its experts in ``experts/<task>/``.

        Raises InputError where the base or an expert is not the one that the router's lock names.
        """
        router, manifest = load_router(folder)
        if manifest["base"]["digest"] != base.digest:
            raise InputError(f"the router was trained on base {manifest['base']['digest'][:12]}, "
                             f"this is {base.digest[:12]}",
                             where=str(folder), fix="load the base it was trained on")  # fmt: skip
        bank = Bank(load_body(base, device), base.pooling)
        experts = {}
        for task, spec_hash in manifest["lock"].items():
            experts[task] = load_expert(bank, folder / "experts" / task, base.digest)
            if experts[task].spec_hash != spec_hash:
                raise InputError(f"expert {task!r} is {experts[task].spec_hash[:12]}, "
                                 f"the router was trained for {spec_hash[:12]}",
                                 where=str(folder), fix="run the library again: the router is stale")  # fmt: skip
        return cls(bank, router, experts, load_tokenizer(base), base.max_length)

    @property
    def one_pass(self) -> bool:
        """Whether no layer runs twice for a row of text: the router reads nothing that an expert changes."""
        lowest = (self.bank.expert(task).adapter.lowest for task in self.router.tasks)
        return max(self._read) <= min(lowest)

    def predict(self, inputs: Sequence[Input], batch_size: int = 64, *, unknown: bool = True) -> list[Prediction]:
        """Answer every input, in order; rows of different tasks share a batch.

        Without ``unknown``, what is like none of the tasks is answered too, by the likeliest. Raises InputError for an
        empty text.
        """
        if any(not prompt_of(row).strip() for row in inputs):
            raise InputError("an empty text has no answer", where="predict", fix="leave empty inputs out")
        items = encode_inputs(self.tokenizer, inputs, self.max_length)
        by_length = sorted(range(len(items)), key=lambda i: items[i].length)
        answers: dict[int, Prediction] = {}
        for start in range(0, len(items), batch_size):
            rows = by_length[start : start + batch_size]
            found = self._answer([inputs[i] for i in rows], [items[i] for i in rows], unknown)
            answers.update(zip(rows, found, strict=True))
        return [answers[i] for i in range(len(inputs))]

    @torch.no_grad()
    def _answer(self, inputs: list[Input], items: list[Item], unknown: bool) -> list[Prediction]:
        wholes = collate([item.whole for item in items], self.pad_id, self.bank.device)
        hidden = self._hidden_states(wholes)
        features = pool_states([hidden[i] for i in self._read], wholes["attention_mask"], self.router.features.poolings)
        routes = self.router.route(features.flatten(1))
        answers = [Prediction(UNKNOWN, "", 0.0, share) for share in routes.shares]
        known = {i: name for i, name in enumerate(routes.names) if routes.known[i] or not unknown}
        writing = {i: name for i, name in known.items() if self.manifests[name].kind == "generate"}
        judging = {i: name for i, name in known.items() if i not in writing}
        for i, scores in self._scores(items, wholes, hidden, judging):
            answers[i] = self._describe(judging[i], routes.shares[i], scores)
        for i, written in self._written(inputs, writing):
            answers[i] = Prediction(writing[i], written.text, written.probability, routes.shares[i])
        return answers

    def _hidden_states(self, wholes: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Hidden states of the bare base from the embeddings to the highest that the router reads."""
        top = max(self._read)
        if top < self._layers:
            return self.bank.trunk(top).hidden_states(wholes)
        return self.bank.model(**wholes, output_hidden_states=True).hidden_states

    def _scores(self, items: list[Item], wholes: dict[str, Tensor], hidden: tuple[Tensor, ...],
                names: dict[int, str]) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
        """Each row's scores through its expert: whole inputs above what was read, options by themselves."""
        apart = [i for i, name in names.items() if self.manifests[name].kind == "choice" and items[i].options]
        plain = [i for i in names if i not in apart]
        if plain:
            lowest = min(self.bank.expert(names[i]).adapter.lowest for i in plain)
            depth = min(lowest, len(hidden) - 1)
            inputs, states = wholes, hidden[depth]
            if len(plain) < len(items):
                index = torch.tensor(plain, device=self.bank.device)
                inputs, states = {key: value[index] for key, value in wholes.items()}, states[index]
            scores = self.bank(inputs, [names[i] for i in plain], states=states, depth=depth).cpu()
            widths = [self.bank.expert(names[i]).head.out_features for i in plain]
            yield from zip(plain, (row[:width] for row, width in zip(scores, widths, strict=True)), strict=True)
        if apart:
            chosen = score(self.bank, [items[i] for i in apart], [names[i] for i in apart], self.pad_id)
            yield from zip(apart, chosen, strict=True)

    def _written(self, inputs: list[Input], names: dict[int, str]) -> Iterator[tuple[int, GeneratedText]]:
        """What each row's expert writes."""
        prompts = [prompt_of(inputs[i]) for i in names]
        most = [self.manifests[name].answer_tokens or MOST_TOKENS for name in names.values()]
        written = generate(self.bank, self.tokenizer, prompts, list(names.values()), most, max_length=self.max_length)
        yield from zip(names, written, strict=True)

    def _describe(self, name: str, routing: float, scores: Tensor) -> Prediction:
        manifest = self.manifests[name]
        if manifest.kind == "choice" and len(scores) == 1:  # a plain text: there is nothing to choose among
            return Prediction(name, "", float(scores[0].sigmoid()), routing)
        shares = torch.nan_to_num(scores, nan=-1e9, posinf=1e9, neginf=-1e9).softmax(-1).tolist()
        # A row may have more options, or fewer, than the rows that the expert was trained on.
        labels = manifest.labels if manifest.kind != "choice" else tuple(map(str, range(len(shares))))
        best = max(range(len(shares)), key=shares.__getitem__)
        return Prediction(name, labels[best], shares[best], routing, dict(zip(labels, shares, strict=True)))
