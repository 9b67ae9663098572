"""The routed model: the router chooses an expert for each input, and that expert answers.

The hidden states computed for the router are reused: the experts of a batch start from the highest one below their
adapted layers. If the router reads only layers below the adapted ones, each input takes one pass through the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.batching import BATCH_ROWS, batch_tokens, split_by_tokens
from ttmoe.conversation import Conversation
from ttmoe.encoding import Input, Item, collate, encode_inputs, pad_id_of
from ttmoe.errors import InputError
from ttmoe.expert_files import Manifest, load_expert
from ttmoe.features import pool_state
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.generation import DEFAULT_MAX_NEW_TOKENS, GeneratedText, conversation_of, generate, prompt_of
from ttmoe.inner_path import inner_path
from ttmoe.prediction import UNKNOWN, Prediction, mix_predictions
from ttmoe.router import Router, load_router
from ttmoe.scoring import score
from ttmoe.surface import surface_text
from ttmoe.trunk import use_hidden_states


class RoutedModel:
    """A library's experts and its router on one base, for inference. Equal inputs give equal answers.

    Args:
        bank: The bank with one expert per task of the router. It is put into eval mode.
        router: The router. It is put into eval mode, on the bank's device.
        manifests: The manifest of each expert, by task.
        tokenizer: The base's tokenizer.
        max_length: Tokens to which inputs are truncated.
    """

    def __init__(self, bank: Bank, router: Router, manifests: dict[str, Manifest], tokenizer: Any,
                 max_length: int) -> None:  # fmt: skip
        self.bank, self.router, self.manifests = bank.eval(), router.eval().to(bank.device), manifests
        if familiarity := router.familiarity:  # saved in fp16; converting it once is faster than in every batch
            familiarity.basis = familiarity.basis.float()
        self.tokenizer, self.max_length, self.pad_id = tokenizer, max_length, pad_id_of(tokenizer)
        self._use_chat_template()
        self._layer_count = len(bank.trunk(0).layers)
        self._feature_indexes = router.features.indexes(self._layer_count)

    @classmethod
    def load(cls, folder: Path, base: Base, device: str = "cpu", bank: Bank | None = None) -> RoutedModel:
        """Load a router and its experts.

        Args:
            folder: The router's folder, with the folder of each expert in ``experts/<task>/``.
            base: The base that the router and the experts were trained on.
            device: Device of the model.
            bank: A bank on this base without experts, to be used instead of loading the base.

        Raises:
            InputError: If a file is missing or altered, or the base or an expert is not the one in the router's lock.
        """
        router, manifest = load_router(folder)
        if manifest["base"]["digest"] != base.digest:
            raise InputError(f"the router was trained on base {manifest['base']['digest'][:12]}, "
                             f"but the loaded base is {base.digest[:12]}",
                             where=str(folder), fix="load the base that the router was trained on")  # fmt: skip
        bank = bank or Bank(load_body(base, device), base.pooling)
        manifests = {}
        for task, spec_hash in manifest["lock"].items():
            expert = inner_path(folder / "experts", task, of="the router's folder", where=str(folder))
            manifests[task] = load_expert(bank, expert, base.digest)
            if manifests[task].spec_hash != spec_hash:
                raise InputError(f"expert {task!r} is {manifests[task].spec_hash[:12]}, "
                                 f"but the router was trained for {spec_hash[:12]}",
                                 where=str(folder), fix="the router is stale: run `ttmoe run` again")  # fmt: skip
        return cls(bank, router, manifests, load_tokenizer(base), base.max_length)

    @property
    def one_pass(self) -> bool:
        """Whether every layer runs at most once per text: the router reads no hidden state that an expert changes."""
        lowest_layers = (self.bank.expert(task).adapter.lowest_layer for task in self.router.tasks)
        return max(self._feature_indexes) <= min(lowest_layers)

    def _use_chat_template(self) -> None:
        """Write conversations in the template in which the experts for them were trained."""
        templates = {task: each.chat_template for task, each in self.manifests.items() if each.chat_template}
        if len(set(templates.values())) > 1:
            what = f"the experts {', '.join(templates)} were trained in different chat templates"
            raise InputError(what, where="chat_template", fix="train them on one copy of the base")
        if templates:
            self.tokenizer.chat_template = next(iter(templates.values()))

    def predict(
        self, inputs: Sequence[Input], batch_size: int = BATCH_ROWS, *, unknown: bool = True, expert: str | None = None,
        streamer: Any = None,
    ) -> list[Prediction]:  # fmt: skip
        """Route and answer inputs of any kind. Rows of different tasks share a batch.

        Args:
            inputs: The rows. Of a conversation that ends with an answer, the prompt before it is answered.
            batch_size: Rows in a batch, at most; batches of long rows have fewer, see ``ttmoe.batching``.
            unknown: Answer ``unknown`` for a row that resembles none of the tasks. If False, the likeliest expert
                answers it.
            expert: Task whose expert answers every row, instead of the one that the router picks.
            streamer: Receives the tokens of a generated text as they come, if there is one input: a ``BaseStreamer`` of
                transformers.

        Returns:
            One prediction per row, in order.

        Raises:
            InputError: If a text is empty, or has half of a character (a lone surrogate).
        """
        if any(not prompt_of(row).strip() for row in inputs):
            raise InputError("an empty text cannot be answered", where="predict", fix="leave empty inputs out")
        for number, row in enumerate(inputs):
            try:
                surface_text(row).encode()
            except UnicodeEncodeError as error:
                raise InputError(f"input {number} is no Unicode text ({error.reason})", where="predict",
                                 fix="remove its lone surrogates, such as \\ud800") from error  # fmt: skip
        inputs = [row.prompt if isinstance(row, Conversation) else row for row in inputs]
        items = encode_inputs(self.tokenizer, inputs, self.max_length)
        lengths = [max(len(item.whole["input_ids"]), item.length) for item in items]
        counts = [max(1, len(item.options)) for item in items]
        longest_first = sorted(range(len(items)), key=lambda i: -lengths[i])
        predictions: dict[int, Prediction] = {}
        for rows in split_by_tokens(longest_first, lengths, counts, batch_tokens(self.bank.device.type), batch_size):
            batch = self._predict_batch([inputs[i] for i in rows], [items[i] for i in rows], unknown, expert,
                                        streamer)  # fmt: skip
            predictions.update(zip(rows, batch, strict=True))
        return [predictions[i] for i in range(len(inputs))]

    @torch.no_grad()
    def _predict_batch(
        self, inputs: list[Input], items: list[Item], unknown: bool, expert: str | None, streamer: Any
    ) -> list[Prediction]:
        wholes = collate([item.whole for item in items], self.pad_id, self.bank.device)
        features, hidden = self._read_base(wholes)
        routes = self.router.route(features, self.router.read_surface([surface_text(row) for row in inputs]))
        if expert is not None:
            names, shares = [expert] * len(items), [{expert: 1.0}] * len(items)
            routes = replace(routes, names=names, shares=shares, familiar=[True] * len(items))
        predictions = [Prediction(UNKNOWN, "", 0.0, probability) for probability in routes.probabilities]
        answered = [i for i in range(len(items)) if routes.familiar[i] or not unknown]
        asked = [(i, name) for i in answered for name in routes.shares[i]]
        generating = {i: name for i, name in asked if self.manifests[name].kind in GENERATING_KINDS}
        members: dict[int, dict[str, Prediction]] = {i: {} for i in answered}
        for i, name, scores in self._score(
            items, wholes, hidden, [pair for pair in asked if pair[0] not in generating]
        ):
            members[i][name] = self._prediction(name, routes.probabilities[i], scores)
        for i in answered:
            if i not in generating:
                predictions[i] = mix_predictions(routes.names[i], members[i], routes.shares[i])
        for i, generated in self._generate(inputs, generating, streamer):
            predictions[i] = Prediction(generating[i], generated.text, generated.probability, routes.probabilities[i])
        return [replace(each, familiar=known) for each, known in zip(predictions, routes.familiar, strict=True)]

    def _read_base(self, wholes: dict[str, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute the router's features (rows, width) in a pass without experts, up to the highest state it reads.

        Returns:
            The features, and by their index the hidden states from which experts continue.
        """
        top, hidden, pooled = max(self._feature_indexes), dict[int, Tensor](), dict[int, Tensor]()
        continued = {self._depth_of(task) for task in self.router.tasks}

        def use(index: int, states: Tensor) -> None:
            if index in self._feature_indexes:
                pooled[index] = pool_state(states, wholes["attention_mask"], self.router.features.poolings)
            if index in continued:
                hidden[index] = states

        if top < self._layer_count:
            self.bank.trunk(top).hidden_states(wholes, use)
        else:
            use_hidden_states(self.bank.model, wholes, use)
        return torch.stack([pooled[i] for i in self._feature_indexes], dim=1).flatten(1), hidden

    def _depth_of(self, task: str) -> int:
        """Return the highest hidden state of the router's pass from which the task's expert can continue."""
        return min(self.bank.expert(task).adapter.lowest_layer, max(self._feature_indexes))

    def _score(self, items: list[Item], wholes: dict[str, Tensor], hidden: dict[int, Tensor],
               asked: list[tuple[int, str]]) -> Iterator[tuple[int, str, Tensor]]:  # fmt: skip
        """Yield the index, the expert and its scores for each pair of a row and an expert, in one mixed batch.

        Whole rows start from the hidden states of the router's pass. Options are sequences of their own.
        """
        by_option, whole = list[tuple[int, str]](), list[tuple[int, str]]()
        for i, name in asked:
            (by_option if self.manifests[name].kind == "choice" and items[i].options else whole).append((i, name))
        if whole:
            rows, names = [i for i, _ in whole], [name for _, name in whole]
            depth = min(map(self._depth_of, names))
            inputs, states = wholes, hidden[depth]
            if rows != list(range(len(items))):
                index = torch.tensor(rows, device=self.bank.device)
                inputs = {key: value[index] for key, value in wholes.items()}
                states = states[index.to(states.device)]  # layers of a divided base are on other GPUs
            scores = self.bank(inputs, names, states=states, depth=depth).cpu()
            for (i, name), row in zip(whole, scores, strict=True):
                yield i, name, row[: self.bank.expert(name).head.out_features]
        if by_option:
            rows, names = [i for i, _ in by_option], [name for _, name in by_option]
            option_scores = score(self.bank, [items[i] for i in rows], names, self.pad_id)
            yield from zip(rows, names, option_scores, strict=True)

    def _generate(
        self, inputs: list[Input], names: dict[int, str], streamer: Any
    ) -> Iterator[tuple[int, GeneratedText]]:
        """Yield the index and the generated text of each row of ``names``."""
        prompts = [_prompt(inputs[i], self.manifests[name].kind) for i, name in names.items()]
        limits = [self.manifests[name].answer_tokens or DEFAULT_MAX_NEW_TOKENS for name in names.values()]
        texts = generate(self.bank, self.tokenizer, prompts, list(names.values()), limits, max_length=self.max_length,
                         streamer=streamer)  # fmt: skip
        yield from zip(names, texts, strict=True)

    def _prediction(self, name: str, routing: float, scores: Tensor) -> Prediction:
        manifest = self.manifests[name]
        if manifest.kind == "choice" and len(scores) == 1:  # a text without options, or a single option
            return Prediction(name, "", float(scores[0].sigmoid()), routing)
        probabilities = torch.nan_to_num(scores, nan=-1e9, posinf=1e9, neginf=-1e9).softmax(-1).tolist()
        # A row may have more or fewer options than the rows that the expert was trained on.
        labels = manifest.labels if manifest.kind != "choice" else tuple(map(str, range(len(probabilities))))
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return Prediction(name, labels[best], probabilities[best], routing,
                          dict(zip(labels, probabilities, strict=True)))  # fmt: skip


def _prompt(row: Input, kind: str) -> str | Conversation:
    """Return what a generating expert answers; a conversation is a prompt already, even after an assistant's turn."""
    if isinstance(row, Conversation):
        return row if kind == "chat" else row.text
    return conversation_of(row) if kind == "chat" else prompt_of(row)
