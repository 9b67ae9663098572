"""The bank: experts loaded together on one frozen base, with one expert for each row of a batch.

Training one expert, training several at once and serving a mixed batch are the same computation. Its cost depends on
the batch, not on the number of loaded experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ttmoe.activation_checkpointing import restore_on_recompute
from ttmoe.adapted_layers import AdaptedLayers
from ttmoe.adapter import Adapter, AdapterSpec, Group, plan_groups
from ttmoe.encoding import pool
from ttmoe.errors import InputError
from ttmoe.expert import Expert, Experts
from ttmoe.head import Head, score_rows
from ttmoe.language_head import LanguageHead
from ttmoe.merging import Merge
from ttmoe.stacking import Updates, stack_updates
from ttmoe.transfer import constant_on
from ttmoe.trunk import Trunk


class Bank(nn.Module):
    """A frozen base and the experts on it.

    Experts can be added and removed at any time; the outputs of the other experts stay bitwise the same.

    To compile, compile the base (``bank.model.compile()``): all experts with the same ``AdapterSpec`` then share its
    graphs: one for batches of one expert, and for mixed batches one where every expert has equally many rows, one after
    another, and one for all others. A compiled bank gives the same results, but every new list of names compiles a new
    graph.

    The methods that compute share these arguments:

    - ``inputs``: A tokenised batch, ``input_ids`` and ``attention_mask``, each (rows, tokens), padded on the right.
    - ``names``: The expert of each row, or one name for all rows.
    - ``states``: States of ``trunk(depth)`` for ``inputs``. With them, only the layers above the trunk are computed;
      the named experts must not adapt a layer below ``depth``.
    - ``dropout_keys``: Keys of the rows (rows, 2), as ``ttmoe.row_dropout.dropout_keys`` returns them. In training they
      decide what dropout drops; without them it draws from torch's global generator.

    They raise InputError if an expert is not loaded or adapts a layer below ``depth``, if the number of names is not
    the number of rows, or if another expert is merged into the base.

    Args:
        model: Transformers body (``AutoModel``). Its parameters are frozen.
        pooling: ``mean`` over tokens, or ``last`` token.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.pooling = pooling
        self.experts = Experts()
        self._layers = AdaptedLayers(self.model)
        self._groups: dict[str, list[Group]] = {}
        self._merge: Merge | None = None
        self._trunks: dict[int, Trunk] = {}
        self._language_head: LanguageHead | None = None

    @property
    def width(self) -> int:
        """The width of the base's hidden states."""
        return self.model.config.hidden_size  # type: ignore[union-attr, return-value]

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.model.parameters()).device

    @property
    def language_head(self) -> LanguageHead:
        """The base's language head, loaded at the first access. Raises InputError if the base is not a causal model."""
        if self._language_head is None:
            self._language_head = LanguageHead(self.model)
        return self._language_head

    def add(self, name: str, spec: AdapterSpec, classes: int, generator: torch.Generator | None = None,
            *, random_head: bool = False) -> Expert:  # fmt: skip
        """Build an expert as ``build_expert`` does, add it to the bank and return it.

        Raises InputError if the name is in use, or the adapter does not fit the base.
        """
        self.require_unused_name(name)
        return self.attach(name, self.build_expert(spec, classes, generator, random_head=random_head))

    def build_expert(self, spec: AdapterSpec, classes: int, generator: torch.Generator | None = None,
                     *, random_head: bool = False) -> Expert:  # fmt: skip
        """Return a new expert for this base without adding it to the bank.

        Args:
            spec: The adapter's specification.
            classes: Number of the head's outputs: the number of labels, 1 for multiple choice (one score per option),
                or 0 for an expert that generates text.
            generator: Source of the initial cores and head; None leaves the cores uninitialised, for weights to be
                loaded.
            random_head: Whether to initialise the head at random. Zero trains best; a head that stays frozen must not
                be zero.

        Raises:
            InputError: If the adapter does not fit the base.
        """
        key = repr(replace(spec, alpha=0.0, dropout=0.0))
        if key not in self._groups:
            self._groups[key] = plan_groups(self.model, spec)
        with torch.inference_mode(False):
            adapter = Adapter(self._groups[key], spec, generator)
            head = Head(self.width, classes)
            if random_head and classes:
                nn.init.normal_(head.weight, std=self.width**-0.5, generator=generator)
            return Expert(adapter, head).to(self.device)

    def attach(self, name: str, expert: Expert) -> Expert:
        """Add an expert from ``build_expert`` to the bank and return it. Raises InputError if the name is in use."""
        self.require_unused_name(name)
        for group in expert.adapter.groups:
            for site in group.sites:
                self._layers.wrap(site)
        self.experts[name] = expert.train(self.model.training)
        return expert

    def remove(self, name: str) -> None:
        """Remove an expert from the bank. Raises InputError if it is not loaded, or is merged."""
        self.expert(name)
        if self._merge and self._merge.name == name:
            raise InputError(f"expert {name!r} is merged into the base", where="bank", fix="unmerge first")
        del self.experts[name]

    def expert(self, name: str) -> Expert:
        """Return the expert of this name. Raises InputError if it is not loaded."""
        if name not in self.experts:
            raise InputError(f"no expert named {name!r} is loaded", where="bank",
                             fix=f"loaded experts: {', '.join(self.experts) or 'none'}")  # fmt: skip
        return self.experts[name]  # type: ignore[return-value]

    def require_unused_name(self, name: str) -> None:
        """Raise InputError if an expert of this name is loaded."""
        if name in self.experts:
            raise InputError(f"an expert named {name!r} is already loaded", where="bank", fix="remove it first")

    def merge(self, name: str) -> None:
        """Add an expert's update to the base's weights. Until ``unmerge``, only this expert can be used.

        Meanwhile everything that reads the base, such as router features, reads the merged weights.

        Raises:
            InputError: If the expert is not loaded, an expert is already merged, or a merged weight is not finite.
                The base then stays as it was.
        """
        expert = self.expert(name)
        if self._merge:
            raise InputError(f"expert {self._merge.name!r} is merged already", where="bank", fix="unmerge first")
        self._merge = Merge(name, expert.adapter, self._layers.by_path)

    def unmerge(self) -> None:
        """Restore the base's own weights bit for bit. Raises InputError if no expert is merged."""
        if not self._merge:
            raise InputError("no expert is merged", where="bank")
        self._merge.undo()
        self._merge = None

    def trunk(self, depth: int) -> Trunk:
        """Return the lowest ``depth`` layers of the base; compute its states outside of ``active``.

        Raises:
            InputError: If the base does not have ``depth`` layers, or an expert is merged into a layer below ``depth``.
        """
        if self._merge and self.expert(self._merge.name).adapter.lowest_layer < depth:
            raise InputError(f"expert {self._merge.name!r} is merged below layer {depth}, so the trunk is not the base",
                             where="bank", fix="unmerge first")  # fmt: skip
        if depth not in self._trunks:
            self._trunks[depth] = Trunk(self.model, depth)
        return self._trunks[depth]

    def last_hidden_state(self, inputs: dict[str, Tensor], names: Sequence[str] | str, *, states: Tensor | None = None,
                          depth: int = 0, dropout_keys: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the base's last hidden state through the named experts, (rows, tokens, width) in the base's dtype."""
        rows = len(inputs["input_ids"])
        if not isinstance(names, str) and len(names) != rows:
            raise InputError(f"{len(names)} names for {rows} rows", where="bank", fix="name one expert for each row")
        if states is not None:
            self._require_above(depth, names)
        with self.active(names, dropout_keys):
            if states is None:
                return self.model(**inputs).last_hidden_state
            return self.trunk(depth).run_above(states, inputs)

    def features(self, inputs: dict[str, Tensor], names: Sequence[str] | str, *, states: Tensor | None = None,
                 depth: int = 0, dropout_keys: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the last hidden state pooled over tokens, (rows, width) in fp32: the input of the heads."""
        hidden = self.last_hidden_state(inputs, names, states=states, depth=depth, dropout_keys=dropout_keys)
        return pool(hidden, inputs["attention_mask"], self.pooling)

    def forward(self, inputs: dict[str, Tensor], names: Sequence[str] | str, *, states: Tensor | None = None,
                depth: int = 0, dropout_keys: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return scores (rows, largest number of classes) in fp32, -inf in columns that a row's expert lacks."""
        features = self.features(inputs, names, states=states, depth=depth, dropout_keys=dropout_keys)
        return self.head_scores(features, names, dropout_keys)

    def head_scores(self, features: Tensor, names: Sequence[str] | str, dropout_keys: Tensor | None = None) -> Tensor:
        """Return the scores of ``forward`` for given ``features`` (rows, width)."""
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(names, str):
                return self.expert(names).head(features, dropout_keys)
            distinct, numbers = _distinct(names)
            heads = [self.expert(name).head for name in distinct]
            return score_rows(features, heads, constant_on(features.device, tuple(numbers)), dropout_keys)

    def _require_above(self, depth: int, names: Sequence[str] | str) -> None:
        for name in {names} if isinstance(names, str) else set(names):
            lowest = self.expert(name).adapter.lowest_layer
            if lowest < depth:
                raise InputError(f"expert {name!r} adapts layer {lowest}, which is below the trunk's depth {depth}",
                                 where="bank", fix=f"use trunk states of depth {lowest} or less")  # fmt: skip

    @contextmanager
    def active(self, names: Sequence[str] | str, dropout_keys: Tensor | None = None) -> Iterator[None]:
        """Apply the named experts to every forward of the base within this context. Gradients flow to their cores.

        With activation checkpointing, the backward pass may run after the context.
        """
        distinct, numbers = ([names], []) if isinstance(names, str) else _distinct(names)
        adapters = [self.expert(name).adapter for name in distinct]
        if self._merge and distinct != [self._merge.name]:
            raise InputError(f"expert {self._merge.name!r} is merged, so no other expert can be used",
                             where="bank", fix="unmerge first")  # fmt: skip
        updates: Updates = {}
        if not self._merge:
            updates = stack_updates(adapters, self._layers.by_path, numbers if len(distinct) > 1 else None,
                                    self.device, dropout_keys)  # fmt: skip
        if torch.is_grad_enabled() and self.model.training:
            restore_on_recompute(self.model, self._layers.snapshot)
        with self._layers.applying(updates):
            yield


def _distinct(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the distinct names in order of first appearance, and each row's index among them."""
    distinct = list(dict.fromkeys(names))
    index_of = {name: i for i, name in enumerate(distinct)}
    return distinct, [index_of[name] for name in names]
