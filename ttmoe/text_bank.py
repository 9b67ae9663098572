"""A bank for notebooks: texts in, labels out, without config, cluster or registry.

    from ttmoe import TextBank
    bank = TextBank.open("path/to/base")
    bank.add("mood", ("sad", "glad"))
    bank.fit("mood", texts, labels)  # or bank.load("experts/mood")
    bank.answer(["what a day"], "mood")

On a causal base an expert can generate its answers: ``bank.add("plural", kind="generate")``, then as above. With
``kind="chat"`` it answers in the base's chat template: inputs are texts, or conversations up to a message of the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import (
    Base,
    choose_dtype,
    choose_pooling,
    digest_folder,
    load_body,
    load_tokenizer,
    quantised_digest,
)
from ttmoe.chat_template import ChatTemplate
from ttmoe.conversation import Conversation, Message
from ttmoe.encoding import Completion, Input, Item, encode_inputs, pad_id_of
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, save_expert
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.generation import DEFAULT_MAX_NEW_TOKENS, conversation_of, generate, prompt_of
from ttmoe.language_head import require_causal
from ttmoe.notebook_training import bare_features, train_expert
from ttmoe.quantization import NOT_QUANTISED
from ttmoe.scoring import score


class TextBank:
    """A bank, the tokenizer of its base, and the label names of each expert.

    Args:
        bank: The bank. It is put into eval mode.
        tokenizer: The base's tokenizer.
        base: The base.

    Attributes:
        labels: The label names of each expert; empty for an expert that chooses among options or generates text.
        longest_answer: For each expert that generates text, the tokens of the longest answer it was trained on; 0 if
            unknown.
        chats: The experts for conversations among them.
    """

    def __init__(self, bank: Bank, tokenizer: Any, base: Base) -> None:
        self.bank, self.tokenizer, self.base = bank.eval(), tokenizer, base
        self.pad_id = pad_id_of(tokenizer)
        self.labels: dict[str, tuple[str, ...]] = {}
        self.longest_answer: dict[str, int] = {}
        self.chats: set[str] = set()

    @classmethod
    def open(cls, folder: str | Path, *, dtype: str = "auto", max_length: int = 128, pooling: str = "auto",
             quantize: str = NOT_QUANTISED, device: str = "cpu") -> TextBank:  # fmt: skip
        """Load a base from a local folder, as ``from_pretrained`` does, and create an empty bank on it.

        Args:
            folder: The folder of the model and its tokenizer.
            dtype: Name of a torch dtype. ``auto``: bfloat16 where the device computes fast in it, else float32.
            max_length: Tokens to which inputs are truncated.
            pooling: ``mean`` or ``last``. ``auto``: the last token for a causal model, else the mean.
            quantize: ``none``, ``int8`` or ``nf4``: how the weights of linear maps are quantised.
            device: Device of the base.

        Raises:
            InputError: If the folder contains no model, or bitsandbytes is needed and not installed.
        """
        path = Path(folder).expanduser().resolve()
        digest = quantised_digest(digest_folder(path), quantize)
        base = Base("folder", path.name, "", digest, str(path), choose_dtype(dtype, device), max_length,
                    choose_pooling(pooling, path))  # fmt: skip
        return cls(Bank(load_body(base, device), base.pooling), load_tokenizer(base), base)

    def add(self, name: str, labels: Sequence[str] = (), spec: AdapterSpec | None = None, *, seed: int = 0,
            kind: str = "") -> None:  # fmt: skip
        """Add an untrained expert.

        Args:
            name: Name of the expert.
            labels: The labels that it chooses from. Empty: it chooses among the options of each row.
            spec: The adapter; by default ``AdapterSpec()``.
            seed: Seed of the initial weights.
            kind: ``generate`` or ``chat`` for an expert that generates text, which has no labels.

        Raises:
            InputError: If the name is in use, the adapter does not fit the base, the base cannot generate text or has
                no chat template, or labels are given to an expert that generates.
        """
        generates, generator = kind in GENERATING_KINDS, torch.Generator().manual_seed(seed)
        if kind not in ("", *GENERATING_KINDS) or (generates and labels):
            raise InputError(f"kind {kind!r} with {len(labels)} labels", where=name,
                             fix="give labels, or kind='generate' or 'chat', or neither for choices")  # fmt: skip
        if generates:
            require_causal(self.bank.model.config)
        if kind == "chat":
            ChatTemplate(self.tokenizer)
        self.bank.add(name, spec or AdapterSpec(), 0 if generates else len(labels) or 1, generator)
        self._register(name, tuple(labels), 0 if generates else None, kind)

    def load(self, folder: str | Path, name: str | None = None) -> None:
        """Add an expert from its files, by default under its task's name.

        Raises:
            InputError: As ``load_expert`` does.
        """
        manifest = load_expert(self.bank, Path(folder), self.base.digest, name)
        longest = manifest.answer_tokens if manifest.kind in GENERATING_KINDS else None
        self._register(name or manifest.task, manifest.labels, longest, manifest.kind)
        if manifest.chat_template:
            self.tokenizer.chat_template = manifest.chat_template

    def save(self, name: str, folder: str | Path) -> None:
        """Write the files of an expert. Raise InputError if it is not loaded."""
        expert, labels = self.bank.expert(name), self.labels[name]
        generates = "chat" if name in self.chats else "generate" if name in self.longest_answer else ""
        kind = generates or ("classify" if labels else "choice")
        save_expert(expert, Path(folder), task=name, kind=kind, labels=labels, base=self.base.record(), spec_hash="",
                    metrics={}, answer_tokens=self.longest_answer.get(name, 0),
                    chat_template=self.tokenizer.chat_template if kind == "chat" else "")  # fmt: skip

    def fit(self, name: str, inputs: Sequence[Input], answers: Sequence[str | int], *, epochs: int = 3,
            batch_size: int = 16, lr: float = 5e-3, seed: int = 0) -> list[float]:  # fmt: skip
        """Train one expert with AdamW and a learning rate that falls linearly to zero.

        The other experts and the base stay bitwise the same.

        Args:
            name: The expert.
            inputs: The rows.
            answers: For each row its label, the index of its option, or its text. The answers of the assistant within a
                conversation are learnt too.
            epochs: Passes over the rows.
            batch_size: Rows per step.
            lr: Learning rate of the first step.
            seed: Seed of the order of rows.

        Returns:
            The loss of every step.

        Raises:
            InputError: If the expert is not loaded, an answer is not one of the labels, or the numbers of rows and
                answers differ.
        """
        expert = self.bank.expert(name)
        if not inputs or len(inputs) != len(answers):
            raise InputError(f"{len(inputs)} rows and {len(answers)} answers", where=name,
                             fix="give one answer for each row, and at least one row")  # fmt: skip
        targets = torch.tensor([self._target(name, answer) for answer in answers])
        if name in self.longest_answer:
            rows = zip(inputs, answers, strict=True)
            items = self._encode([self._answered(name, row, str(answer)) for row, answer in rows])
            self.longest_answer[name] = max(self.longest_answer[name], *(n for i in items for n in i.answer_lengths))
        else:
            items = self._encode(inputs)
            expert.head.fit_scale(bare_features(self.bank, items[:256], self.pad_id))
        return train_expert(self.bank, name, items, targets, self.pad_id, epochs=epochs, batch_size=batch_size, lr=lr,
                            seed=seed)  # fmt: skip

    @torch.no_grad()
    def answer(self, inputs: Sequence[Input], names: Sequence[str] | str, batch_size: int = 64) -> list[str]:
        """Answer each row with its expert.

        Args:
            inputs: The rows.
            names: The expert of each row, or one name for all.
            batch_size: Rows in a batch, at most.

        Returns:
            For each row the label, the index of the option, or the generated text.

        Raises:
            InputError: If an expert is not loaded, or the numbers of rows and names differ.
        """
        row_names = [names] * len(inputs) if isinstance(names, str) else list(names)
        if len(row_names) != len(inputs):
            raise InputError(f"{len(row_names)} names for {len(inputs)} inputs", where="answer",
                             fix="give one name for each input, or one for all")  # fmt: skip
        generating = [i for i, name in enumerate(row_names) if name in self.longest_answer]
        scoring = [i for i, name in enumerate(row_names) if name not in self.longest_answer]
        items = dict(zip(scoring, self._encode([inputs[i] for i in scoring]), strict=True))
        answers: dict[int, str] = {}
        for start in range(0, len(scoring), batch_size):
            rows = scoring[start : start + batch_size]
            scores = score(self.bank, [items[i] for i in rows], [row_names[i] for i in rows], self.pad_id)
            for i, row in zip(rows, scores, strict=True):
                best, labels = int(row.argmax()), self.labels[row_names[i]]
                answers[i] = labels[best] if labels else str(best)
        limits = [self.longest_answer[row_names[i]] or DEFAULT_MAX_NEW_TOKENS for i in generating]
        texts = generate(self.bank, self.tokenizer, [self._prompt(row_names[i], inputs[i]) for i in generating],
                         [row_names[i] for i in generating], limits, max_length=self.base.max_length,
                         batch_size=batch_size)  # fmt: skip
        answers |= {i: generated.text for i, generated in zip(generating, texts, strict=True)}
        return [answers[i] for i in range(len(inputs))]

    def _prompt(self, name: str, row: Input) -> str | Conversation:
        return conversation_of(row) if name in self.chats else prompt_of(row)

    def _answered(self, name: str, row: Input, answer: str) -> Input:
        prompt = self._prompt(name, row)
        if isinstance(prompt, str):
            return Completion(prompt, answer)
        return Conversation((*prompt.messages, Message("assistant", answer)))

    def _register(self, name: str, labels: tuple[str, ...], longest_answer: int | None, kind: str) -> None:
        self.labels[name] = labels
        (self.chats.add if kind == "chat" else self.chats.discard)(name)
        self.longest_answer.pop(name, None)
        if longest_answer is not None:
            self.longest_answer[name] = longest_answer

    def _encode(self, inputs: Sequence[Input]) -> list[Item]:
        return encode_inputs(self.tokenizer, inputs, self.base.max_length)

    def _target(self, name: str, answer: str | int) -> int:
        """Return the index of the answer's output. It has no meaning for an expert that generates text."""
        labels = self.labels[name]
        if name in self.longest_answer:
            return 0
        if labels and answer in labels:
            return labels.index(str(answer))
        if labels or not isinstance(answer, int):
            raise InputError(f"{answer!r} is not an answer of {name!r}", where=name,
                             fix=f"use one of {', '.join(labels)}" if labels else "use an option's index")  # fmt: skip
        return answer
