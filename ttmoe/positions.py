"""How many tokens a base has positions for, and how many token ids it has embeddings for."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# The tables of learned or fixed positions in transformers' architectures; rotary and relative positions have none.
_TABLES = re.compile(r"(?:^|\.)(?:position_embeddings?|embed_positions|wpe|position_embed)$")


def usable_positions(model: nn.Module) -> int | None:
    """Return the largest number of tokens for which a body has positions; None if their number is not limited.

    Args:
        model: Transformers body; it may be on the meta device.
    """
    counts = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _TABLES.search(name):
            # OPT's and BART's positions begin behind an offset, those of RoBERTa and its kin behind the padding's.
            before = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            counts.append(module.num_embeddings - before)
    return min(counts, default=None)


def embedded_ids(model: nn.Module) -> int:
    """Return the number of token ids for which a body has embeddings."""
    return int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]


def largest_id(tokenizer: Any) -> int:
    """Return the largest token id that a tokenizer makes."""
    return max(tokenizer.get_vocab().values(), default=0)
