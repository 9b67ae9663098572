"""A bank that reads texts: for a notebook, with no config, cluster or registry.

    from ttmoe import TextBank
    bank = TextBank.open("path/to/base")
    bank.add("mood", ("sad", "glad"))
    bank.fit("mood", texts, labels)  # or bank.load("experts/mood")
    bank.answer(["what a day"], "mood")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, choose_dtype, choose_pooling, digest_folder, load_body, load_tokenizer
from ttmoe.encoding import Input, Item, collate, encode_inputs, pad_id_of, pool
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, save_expert
from ttmoe.scoring import score


class TextBank:
    """A bank, its base's tokenizer, and the label names of each expert. No labels: the expert chooses among options."""

    def __init__(self, bank: Bank, tokenizer: Any, base: Base) -> None:
        self.bank, self.tokenizer, self.base = bank.eval(), tokenizer, base
        self.pad_id = pad_id_of(tokenizer)
        self.labels: dict[str, tuple[str, ...]] = {}

    @classmethod
    def open(cls, folder: str | Path, *, dtype: str = "auto", max_length: int = 128, pooling: str = "auto",
             device: str = "cpu") -> TextBank:  # fmt: skip
        """The base in a local folder, as ``from_pretrained`` would load it. Raises InputError where there is none."""
        path = Path(folder).expanduser().resolve()
        base = Base("folder", path.name, "", digest_folder(path), str(path), choose_dtype(dtype, device), max_length,
                    choose_pooling(pooling, path))  # fmt: skip
        return cls(Bank(load_body(base, device), base.pooling), load_tokenizer(base), base)

    def add(self, name: str, labels: Sequence[str] = (), spec: AdapterSpec | None = None, *, seed: int = 0) -> None:
        """A new expert that answers with one of ``labels``. Raises InputError as ``Bank.add`` does."""
        generator = torch.Generator().manual_seed(seed)
        self.bank.add(name, spec or AdapterSpec(), len(labels) or 1, generator)
        self.labels[name] = tuple(labels)

    def load(self, folder: str | Path, name: str | None = None) -> None:
        """Add an expert from its files, under its task's name. Raises InputError as ``load_expert`` does."""
        manifest = load_expert(self.bank, Path(folder), self.base.digest, name)
        self.labels[name or manifest.task] = manifest.labels

    def save(self, name: str, folder: str | Path) -> None:
        """Write an expert's files. Raises InputError for one that is not loaded."""
        expert, labels = self.bank.expert(name), self.labels[name]
        save_expert(expert, Path(folder), task=name, kind="classify" if labels else "choice", labels=labels,
                    base=self.base.identity(), spec_hash="", metrics={})  # fmt: skip

    def fit(self, name: str, inputs: Sequence[Input], answers: Sequence[str | int], *, epochs: int = 3,
            batch_size: int = 16, lr: float = 5e-3, seed: int = 0) -> list[float]:  # fmt: skip
        """Train one expert on rows and their answers (labels, or the option's number); the loss of every step.

        AdamW, and a learning rate that falls to zero. Other experts and the base stay as they are, to the bit. Raises
        InputError for an answer that is not among the labels, or where rows and answers do not pair.
        """
        expert = self.bank.expert(name)
        items, targets = self._encode(inputs), torch.tensor([self._target(name, answer) for answer in answers])
        if not items or len(items) != len(targets):
            raise InputError(f"{len(items)} rows and {len(targets)} answers", where=name, fix="give one for each row")
        expert.head.fit_scale(self._bare_states(items[:256]))
        expert.requires_grad_(True)
        optimizer = torch.optim.AdamW(expert.parameters(), lr=lr)
        steps = epochs * -(-len(items) // batch_size)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        generator = torch.Generator().manual_seed(seed)
        expert.train()
        losses = []
        for _ in range(epochs):
            for rows in torch.randperm(len(items), generator=generator).split(batch_size):
                optimizer.zero_grad()
                scores = score(self.bank, [items[i] for i in rows.tolist()], name, self.pad_id)
                pairs = zip(scores, targets[rows].to(self.bank.device), strict=True)
                loss = torch.stack([F.cross_entropy(row, target) for row, target in pairs]).mean()
                loss.backward()
                optimizer.step()
                decay.step()
                losses.append(loss.item())
        expert.requires_grad_(False).eval()
        return losses

    @torch.no_grad()
    def answer(self, inputs: Sequence[Input], names: Sequence[str] | str, batch_size: int = 64) -> list[str]:
        """The label of each input (or the option's number) by the expert named for it; one name: all inputs."""
        items = self._encode(inputs)
        each = [names] * len(items) if isinstance(names, str) else list(names)
        if len(each) != len(items):
            raise InputError(f"{len(each)} names for {len(items)} inputs", where="answer", fix="name one for each")
        found: list[str] = []
        for start in range(0, len(items), batch_size):
            part = each[start : start + batch_size]
            scores = score(self.bank, items[start : start + batch_size], part, self.pad_id)
            best = [int(row.argmax()) for row in scores]
            found += [self.labels[name][i] if self.labels[name] else str(i) for name, i in zip(part, best, strict=True)]
        return found

    def _encode(self, inputs: Sequence[Input]) -> list[Item]:
        return encode_inputs(self.tokenizer, inputs, self.base.max_length)

    def _target(self, name: str, answer: str | int) -> int:
        labels = self.labels[name]
        if labels and answer in labels:
            return labels.index(str(answer))
        if labels or not isinstance(answer, int):
            raise InputError(f"{answer!r} is not an answer of {name!r}", where=name,
                             fix=f"one of {', '.join(labels)}" if labels else "the number of an option")  # fmt: skip
        return answer

    @torch.no_grad()
    def _bare_states(self, items: Sequence[Item]) -> torch.Tensor:
        """Pooled states of the bare base: what the head is to be scaled to."""
        rows = [tokens for item in items for tokens in item.options or (item.whole,)]
        parts = []
        for start in range(0, len(rows), 64):
            inputs = collate(rows[start : start + 64], self.pad_id, self.bank.device)
            parts.append(pool(self.bank.model(**inputs).last_hidden_state, inputs["attention_mask"], self.base.pooling))
        return torch.cat(parts)
