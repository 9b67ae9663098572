"""Scores for whole rows, whatever their kind: classes of a text or pair, or the options of a choice."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ttmoe.bank import Bank
from ttmoe.encoding import Item, collate


def score(bank: Bank, items: Sequence[Item], names: Sequence[str] | str, pad_id: int, *, states: Tensor | None = None,
          depth: int = 0) -> list[Tensor]:  # fmt: skip
    """Each item's scores through the expert named for it: (classes,), or (options,) where the expert chooses.

    An expert with a single output reads each option beside the text; any other reads the whole input once. ``states``
    (sequences, tokens, width) are what the trunk of ``depth`` gave for these sequences, item after item; without them
    a ``depth`` has the trunk worked out here, without gradients and dropout: it is the same trunk, kept or not. Raises
    InputError for an expert that is not loaded, or that adapts a layer below ``depth``.
    """
    if not items:
        return []
    each = [names] * len(items) if isinstance(names, str) else list(names)
    outputs = {name: bank.expert(name).head.out_features for name in dict.fromkeys(each)}
    rows = [item.options if outputs[name] == 1 and item.options else (item.whole,)
            for item, name in zip(items, each, strict=True)]  # fmt: skip
    inputs = collate([tokens for row in rows for tokens in row], pad_id, bank.device)
    if depth and states is None:
        states = bank.trunk(depth).states(inputs)
    flat = names if isinstance(names, str) else [name for name, row in zip(each, rows, strict=True) for _ in row]
    parts = bank(inputs, flat, states=states, depth=depth).split([len(row) for row in rows])
    return [part[:, 0] if outputs[name] == 1 else part[0, : outputs[name]]  # type: ignore[misc]
            for part, name in zip(parts, each, strict=True)]  # fmt: skip
