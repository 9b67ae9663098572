"""How many tokens a base has positions for, and how many token ids it has embeddings for."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from torch import nn

# The tables of learned or fixed positions in transformers' architectures; rotary and relative positions have none, but
# GPT-J and CodeGen keep theirs as a table.
_TABLES = re.compile(
    r"(?:^|\.)(?:position_embeddings?|embed_positions|positions_embed|position_embed|pos_encoding|wpe)(?:\.weight)?$"
)
_NUMBERS = re.compile(r"(?:^|\.)position_ids$")  # of which BERT's kin take as many as there are tokens


def usable_positions(model: nn.Module) -> int | None:
    """Return the largest number of tokens for which a body has positions; None if their number is not limited.

    Args:
        model: Transformers body; it may be on the meta device.
    """
    counts = []
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if _NUMBERS.search(name):
            counts.append(tensor.shape[-1])
        elif tensor.dim() == 2 and _TABLES.search(name):
            # OPT's and BART's positions begin behind an offset, those of RoBERTa and its kin behind the padding's.
            table = model.get_submodule(name.rpartition(".")[0])
            padding = getattr(table, "padding_idx", None)
            counts.append(tensor.shape[0] - getattr(table, "offset", 0 if padding is None else padding + 1))
    return min(counts, default=None)


def embedded_ids(model: nn.Module) -> int:
    """Return the number of token ids for which a body has embeddings."""
    return int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]


def largest_id(tokenizer: Any) -> int:
    """Return the largest token id that a tokenizer makes."""
    return max(tokenizer.get_vocab().values(), default=0)
