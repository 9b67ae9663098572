"""A bank that reads texts: for a notebook, with no config, cluster or registry.

    from ttmoe import TextBank
    bank = TextBank.open("path/to/base")
    bank.add("mood", ("sad", "glad"))
    bank.fit("mood", texts, labels)  # or bank.load("experts/mood")
    bank.answer(["what a day"], "mood")

On a causal base an expert may write its answers: ``bank.add("plural", kind="generate")``, then as above.
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
from ttmoe.encoding import Completion, Input, Item, collate, encode_inputs, pad_id_of, pool
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, save_expert
from ttmoe.generation import MOST_TOKENS, generate, prompt_of
from ttmoe.language_head import require_causal
from ttmoe.scoring import score


class TextBank:
    """A bank, its base's tokenizer, and the label names of each expert.

    No labels: the expert chooses among options. Or it writes text: then ``longest`` holds the tokens of the longest
    answer that it was trained on (0: not known).
    """

    def __init__(self, bank: Bank, tokenizer: Any, base: Base) -> None:
        self.bank, self.tokenizer, self.base = bank.eval(), tokenizer, base
        self.pad_id = pad_id_of(tokenizer)
        self.labels: dict[str, tuple[str, ...]] = {}
        self.longest: dict[str, int] = {}

    @classmethod
    def open(cls, folder: str | Path, *, dtype: str = "auto", max_length: int = 128, pooling: str = "auto",
             device: str = "cpu") -> TextBank:  # fmt: skip
        """The base in a local folder, as ``from_pretrained`` would load it. Raises InputError where there is none."""
        path = Path(folder).expanduser().resolve()
        base = Base("folder", path.name, "", digest_folder(path), str(path), choose_dtype(dtype, device), max_length,
                    choose_pooling(pooling, path))  # fmt: skip
        return cls(Bank(load_body(base, device), base.pooling), load_tokenizer(base), base)

    def add(self, name: str, labels: Sequence[str] = (), spec: AdapterSpec | None = None, *, seed: int = 0,
            kind: str = "") -> None:  # fmt: skip
        """A new expert that answers with one of ``labels``, or with text (kind ``generate``).

        Raises InputError as ``Bank.add`` does, for a base that writes no text, and for labels of an expert that does.
        """
        writes, generator = kind == "generate", torch.Generator().manual_seed(seed)
        if kind not in ("", "generate") or (writes and labels):
            raise InputError(f"kind {kind!r} with {len(labels)} labels", where=name,
                             fix="give labels, or the kind generate, or for choices neither")  # fmt: skip
        if writes:
            require_causal(self.bank.model.config)
        self.bank.add(name, spec or AdapterSpec(), 0 if writes else len(labels) or 1, generator)
        self._keep(name, tuple(labels), 0 if writes else None)

    def load(self, folder: str | Path, name: str | None = None) -> None:
        """Add an expert from its files, under its task's name. Raises InputError as ``load_expert`` does."""
        manifest = load_expert(self.bank, Path(folder), self.base.digest, name)
        writes = manifest.kind == "generate"
        self._keep(name or manifest.task, manifest.labels, manifest.answer_tokens if writes else None)

    def save(self, name: str, folder: str | Path) -> None:
        """Write an expert's files. Raises InputError for one that is not loaded."""
        expert, labels = self.bank.expert(name), self.labels[name]
        kind = "generate" if name in self.longest else "classify" if labels else "choice"
        save_expert(expert, Path(folder), task=name, kind=kind, labels=labels, base=self.base.identity(), spec_hash="",
                    metrics={}, answer_tokens=self.longest.get(name, 0))  # fmt: skip

    def fit(self, name: str, inputs: Sequence[Input], answers: Sequence[str | int], *, epochs: int = 3,
            batch_size: int = 16, lr: float = 5e-3, seed: int = 0) -> list[float]:  # fmt: skip
        """Train one expert on rows and their answers (labels, the option's number, or texts); the loss of every step.

        AdamW, and a learning rate that falls to zero. Other experts and the base stay as they are, to the bit. Raises
        InputError for an answer that is not among the labels, or where rows and answers do not pair.
        """
        expert = self.bank.expert(name)
        if not inputs or len(inputs) != len(answers):
            raise InputError(f"{len(inputs)} rows and {len(answers)} answers", where=name, fix="give one for each row")
        targets = torch.tensor([self._target(name, answer) for answer in answers])
        if name in self.longest:
            rows = zip(inputs, answers, strict=True)
            items = self._encode([Completion(prompt_of(row), str(answer)) for row, answer in rows])
            self.longest[name] = max(self.longest[name], *(item.answer for item in items))
        else:
            items = self._encode(inputs)
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
                loss = torch.stack([_loss(row, target) for row, target in pairs]).mean()
                loss.backward()
                optimizer.step()
                decay.step()
                losses.append(loss.item())
        expert.requires_grad_(False).eval()
        return losses

    @torch.no_grad()
    def answer(self, inputs: Sequence[Input], names: Sequence[str] | str, batch_size: int = 64) -> list[str]:
        """The label of each input (or the option's number, or text) by its expert; one name is for all inputs."""
        each = [names] * len(inputs) if isinstance(names, str) else list(names)
        if len(each) != len(inputs):
            raise InputError(f"{len(each)} names for {len(inputs)} inputs", where="answer", fix="name one for each")
        writing = [i for i, name in enumerate(each) if name in self.longest]
        judging = [i for i, name in enumerate(each) if name not in self.longest]
        items = dict(zip(judging, self._encode([inputs[i] for i in judging]), strict=True))
        found: dict[int, str] = {}
        for start in range(0, len(judging), batch_size):
            rows = judging[start : start + batch_size]
            scores = score(self.bank, [items[i] for i in rows], [each[i] for i in rows], self.pad_id)
            for i, row in zip(rows, scores, strict=True):
                best, labels = int(row.argmax()), self.labels[each[i]]
                found[i] = labels[best] if labels else str(best)
        prompts, most = [prompt_of(inputs[i]) for i in writing], [self.longest[each[i]] or MOST_TOKENS for i in writing]
        texts = generate(self.bank, self.tokenizer, prompts, [each[i] for i in writing], most,
                         max_length=self.base.max_length, batch_size=batch_size)  # fmt: skip
        found |= {i: written.text for i, written in zip(writing, texts, strict=True)}
        return [found[i] for i in range(len(inputs))]

    def _keep(self, name: str, labels: tuple[str, ...], longest: int | None) -> None:
        self.labels[name] = labels
        self.longest.pop(name, None)
        if longest is not None:
            self.longest[name] = longest

    def _encode(self, inputs: Sequence[Input]) -> list[Item]:
        return encode_inputs(self.tokenizer, inputs, self.base.max_length)

    def _target(self, name: str, answer: str | int) -> int:
        labels = self.labels[name]
        if name in self.longest:
            return 0
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


def _loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a row: of its label, or on average of its answer's tokens."""
    return F.cross_entropy(scores, target) if scores.ndim == 1 else -scores[:, 0].mean()
