"""The bank: experts loaded together on one frozen base; each row of a batch goes through its own expert.

Training one expert, training several at once and serving a mixed batch are this one computation. Its cost follows the
work in the batch, not the number of experts that are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ttmoe.activation_checkpointing import recompute_within
from ttmoe.adapter import Adapter, AdapterSpec, Group, plan_groups
from ttmoe.disentangled import split_position_bias
from ttmoe.encoding import pool
from ttmoe.errors import InputError
from ttmoe.expert import Expert, Experts
from ttmoe.head import Head, score_rows
from ttmoe.language_head import LanguageHead
from ttmoe.layer import AdaptedLinear
from ttmoe.merging import Merge
from ttmoe.stacking import Updates, updates_for
from ttmoe.trunk import Trunk


class Bank(nn.Module):
    """A frozen base and the experts on it.

    ``model`` is a transformers body (``AutoModel``); its parameters are frozen here. ``pooling`` is ``mean`` or
    ``last``. Experts are added and removed at run time; no other expert's output changes by a bit.

    To compile, compile the base (``bank.model.compile()``): experts of one form then share its graphs, one for a batch
    of one expert and one for a mixed batch. A compiled bank is right too, but each new list of names is a new graph.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.pooling = pooling
        self.experts = Experts()
        self._layers: dict[str, AdaptedLinear] = {}
        self._plans: dict[str, list[Group]] = {}
        self._updates: Updates = {}
        self._merge: Merge | None = None
        self._trunks: dict[int, Trunk] = {}
        self._words: LanguageHead | None = None

    @property
    def width(self) -> int:
        """The size of the base's hidden states."""
        return self.model.config.hidden_size  # type: ignore[union-attr, return-value]

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return next(self.model.parameters()).device

    @property
    def words(self) -> LanguageHead:
        """The base's own language head, which all experts that write share; made when it is first asked for.

        Raises InputError for a base that writes no text.
        """
        if self._words is None:
            self._words = LanguageHead(self.model)
        return self._words

    def add(self, name: str, spec: AdapterSpec, classes: int, generator: torch.Generator | None = None,
            *, random_head: bool = False) -> Expert:  # fmt: skip
        """A new expert, its cores and head drawn from ``generator`` (without one: unset, to be loaded into).

        ``classes`` is the head's number of outputs (1 for multiple choice: one score an option; 0 for an expert that
        writes text with the base's own ``words``). It starts at zero, which trains best; a head that will stay frozen
        needs ``random_head``. Raises InputError for a name that is taken, or an adapter that does not fit the base.
        """
        self.require_free(name)
        return self.attach(name, self.draft(spec, classes, generator, random_head=random_head))

    def draft(self, spec: AdapterSpec, classes: int, generator: torch.Generator | None = None,
              *, random_head: bool = False) -> Expert:  # fmt: skip
        """An expert as ``add`` makes it, that fits this base but is not in the bank yet: nothing here changes."""
        key = repr(replace(spec, alpha=0.0, dropout=0.0))
        if key not in self._plans:
            self._plans[key] = plan_groups(self.model, spec)
        with torch.inference_mode(False):
            adapter = Adapter(self._plans[key], spec, generator)
            head = Head(self.width, classes)
            if random_head and classes:
                nn.init.normal_(head.weight, std=self.width**-0.5, generator=generator)
            return Expert(adapter, head).to(self.device)

    def attach(self, name: str, expert: Expert) -> Expert:
        """Put a drafted expert into the bank. Raises InputError for a name that is taken."""
        self.require_free(name)
        for group in expert.adapter.groups:
            for site in group.sites:
                self._wrap(site.path).parts.setdefault(site.role, site.rows)
        self.experts[name] = expert.train(self.model.training)
        return expert

    def remove(self, name: str) -> None:
        """Forget an expert. Raises InputError for one that is not loaded, or merged."""
        self.expert(name)
        if self._merge and self._merge.name == name:
            raise InputError(f"expert {name!r} is merged into the base", where="bank", fix="unmerge first")
        del self.experts[name]

    def expert(self, name: str) -> Expert:
        """The expert of this name. Raises InputError where none is loaded."""
        if name not in self.experts:
            raise InputError(f"no expert named {name!r} is loaded", where="bank",
                             fix=f"loaded: {', '.join(self.experts) or 'none'}")  # fmt: skip
        return self.experts[name]  # type: ignore[return-value]

    def require_free(self, name: str) -> None:
        """Raise InputError where an expert of this name is loaded."""
        if name in self.experts:
            raise InputError(f"an expert named {name!r} is loaded already", where="bank", fix="remove it first")

    def merge(self, name: str) -> None:
        """Write an expert into the base's weights. Until ``unmerge`` the bank answers through it alone.

        The bare base is not to be had meanwhile: what reads it (router features) would read the expert. Raises
        InputError, and leaves the base as it was, where a weight would not be finite or an expert is merged already.
        """
        expert = self.expert(name)
        if self._merge:
            raise InputError(f"expert {self._merge.name!r} is merged already", where="bank", fix="unmerge first")
        self._merge = Merge(name, expert.adapter, self._layers)

    def unmerge(self) -> None:
        """Bring the base's own weights back, bit for bit. Raises InputError where nothing is merged."""
        if not self._merge:
            raise InputError("no expert is merged", where="bank")
        self._merge.undo()
        self._merge = None

    def trunk(self, depth: int) -> Trunk:
        """The bare base cut at ``depth``, whose states ``features`` and ``forward`` can start from.

        Take states outside of ``active``. Raises InputError for a depth the base does not have, or where an expert is
        merged into a layer below it.
        """
        if self._merge and self.expert(self._merge.name).adapter.lowest < depth:
            raise InputError(f"expert {self._merge.name!r} is merged below layer {depth}: the trunk is not the base's",
                             where="bank", fix="unmerge first")  # fmt: skip
        if depth not in self._trunks:
            self._trunks[depth] = Trunk(self.model, depth)
        return self._trunks[depth]

    def top(self, inputs: dict[str, Tensor], names: Sequence[str] | str, *, states: Tensor | None = None,
            depth: int = 0) -> Tensor:  # fmt: skip
        """The last hidden state (rows, tokens, width), each row through the expert named for it (one name: all rows).

        With ``states``, which the trunk of ``depth`` gave for these inputs, only the layers above it are worked out;
        the experts must adapt none below.
        """
        rows = len(inputs["attention_mask"])
        if not isinstance(names, str) and len(names) != rows:
            raise InputError(f"{len(names)} names for {rows} rows", where="bank", fix="name one expert for each row")
        if states is not None:
            self._require_above(depth, names)
        with self.active(names):
            return self.model(**inputs).last_hidden_state if states is None else self.trunk(depth).above(states, inputs)

    def features(self, inputs: dict[str, Tensor], names: Sequence[str] | str, *, states: Tensor | None = None,
                 depth: int = 0) -> Tensor:  # fmt: skip
        """The same states pooled: (rows, width), fp32."""
        return pool(self.top(inputs, names, states=states, depth=depth), inputs["attention_mask"], self.pooling)

    def forward(self, inputs: dict[str, Tensor], names: Sequence[str] | str, *, states: Tensor | None = None,
                depth: int = 0) -> Tensor:  # fmt: skip
        """Scores (rows, most classes of any expert in the batch), fp32; columns that an expert lacks are -inf.

        ``states`` and ``depth`` as in ``top``.
        """
        return self.judge(self.features(inputs, names, states=states, depth=depth), names)

    def judge(self, features: Tensor, names: Sequence[str] | str) -> Tensor:
        """The same scores from pooled states (rows, width): the experts' heads alone."""
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(names, str):
                return self.expert(names).head(features)
            order, rows = _distinct(names)
            return score_rows(features, [self.expert(name).head for name in order], rows.to(features.device))

    def _require_above(self, depth: int, names: Sequence[str] | str) -> None:
        for name in {names} if isinstance(names, str) else set(names):
            lowest = self.expert(name).adapter.lowest
            if lowest < depth:
                raise InputError(f"expert {name!r} adapts layer {lowest}, which is below the trunk's top, {depth}",
                                 where="bank", fix=f"take the trunk's states at depth {lowest} or lower")  # fmt: skip

    @contextmanager
    def active(self, names: Sequence[str] | str) -> Iterator[None]:
        """Within this context the base answers through the named experts. Gradients flow into their cores.

        With gradient checkpointing the backward may come after the context: each layer is recomputed as it was.
        """
        order, rows = ([names], None) if isinstance(names, str) else _distinct(names)
        adapters = [self.expert(name).adapter for name in order]
        if self._merge and order != [self._merge.name]:
            raise InputError(f"expert {self._merge.name!r} is merged, and the bank answers through it alone",
                             where="bank", fix="unmerge first")  # fmt: skip
        updates: Updates = {}
        if not self._merge:
            places = rows.to(self.device) if rows is not None and len(order) > 1 else None
            updates = updates_for(adapters, places, self._layers)
        if torch.is_grad_enabled() and self.model.training:
            recompute_within(self.model, self._as_now)
        with self._set(updates):
            yield

    @contextmanager
    def _set(self, updates: Updates) -> Iterator[None]:
        before = self._updates
        try:
            self._put(updates)
            yield
        finally:
            self._put(before)

    def _as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """What opens a context in which the layers add what they add now."""
        return partial(self._set, self._updates)

    def _put(self, updates: Updates) -> None:
        if updates is not self._updates:
            self._updates = updates
            for path, layer in self._layers.items():
                layer.updates = updates.get(path, {})

    def _wrap(self, path: str) -> AdaptedLinear:
        if path not in self._layers:
            parent, _, child = path.rpartition(".")
            layer = AdaptedLinear(self.model.get_submodule(path)).train(self.model.training)
            setattr(self.model.get_submodule(parent), child, layer)
            split_position_bias(self.model.get_submodule(parent))
            self._layers[path] = layer
        return self._layers[path]


def _distinct(names: Sequence[str]) -> tuple[list[str], Tensor]:
    """The different names in order of first appearance, and each row's position among them."""
    order = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(order)}
    return order, torch.tensor([place[name] for name in names])
