"""Several sequences in one row of a batch, without attention from one to another: less padding where lengths differ.

Positions begin again with each sequence, by which transformers tells sequences apart that share a row: its masks then
are causal within each (``transformers.masking_utils.find_packed_sequence_indices``). Rows keep the length that padding
would give them, and become fewer. Sequences keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ttmoe.architectures import architecture_of
from ttmoe.chat_template import Spans, Tokens
from ttmoe.transfer import to_device

PACKED_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3",
                                  "gpt2", "gpt_neox", "gptj", "olmo2", "smollm3"})  # fmt: skip
"""Model types whose masks follow positions; in others, a token would see the sequences before its own."""

LEAST_SAVED = 1 / 8  # of the padded tokens; on a GPU, the mask costs some of what fewer tokens gain


@dataclass(frozen=True)
class Packing:
    """Where sequences lie in packed rows.

    Attributes:
        places: Row of each sequence, and its first token there.
        lengths: Number of tokens of each sequence.
        rows: Number of rows.
        length: Number of tokens of a row.
    """

    places: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    rows: int
    length: int

    def collate(self, sequences: Sequence[Tokens], pad_id: int, device: torch.device | str) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``position_ids`` of the packed sequences, (rows, tokens) each, int64."""
        ids = torch.full((self.rows, self.length), pad_id)
        for (row, first), sequence in zip(self.places, sequences, strict=True):
            ids[row, first : first + len(sequence["input_ids"])] = torch.tensor(sequence["input_ids"])
        positions = torch.zeros_like(ids)
        for row, bounds in enumerate(self._bounds()):
            positions[row] = torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])
        return {"input_ids": to_device(ids, device), "position_ids": to_device(positions, device)}

    def gather(self, states: Tensor) -> Tensor:
        """Pack states (sequences, tokens, width) into (rows, tokens, width); padding gets any of them."""
        index = torch.zeros(self.rows, self.length, dtype=torch.long)
        for number, ((row, first), length) in enumerate(zip(self.places, self.lengths, strict=True)):
            start = number * states.shape[1]
            index[row, first : first + length] = torch.arange(start, start + length)
        return states.flatten(0, 1)[to_device(index, states.device)]

    def names(self, names: Sequence[str]) -> list[str]:
        """Return the name of each row, from those of the sequences."""
        return list({row: name for (row, _), name in zip(self.places, names, strict=True)}.values())

    def spans(self, spans: Sequence[Spans]) -> list[Spans]:
        """Return the spans of tokens of each row, in order, from those of the sequences."""
        found: list[Spans] = [()] * self.rows
        for (row, first), each in zip(self.places, spans, strict=True):
            found[row] += tuple((first + start, first + end) for start, end in each)
        return found

    def _bounds(self) -> list[list[int]]:
        """Return where the sequences of each row begin, and at last where the padding begins and ends."""
        bounds: list[list[int]] = [[] for _ in range(self.rows)]
        ends = [0] * self.rows
        for (row, first), length in zip(self.places, self.lengths, strict=True):
            bounds[row].append(first)
            ends[row] = first + length
        return [[*starts, end, self.length] for starts, end in zip(bounds, ends, strict=True)]


def allows_packing(model: nn.Module) -> bool:
    """Return whether sequences in one row of this model do not see each other; with a cache they would."""
    return architecture_of(model) in PACKED_ARCHITECTURES and not getattr(model.config, "use_cache", False)


def pack_sequences(
    lengths: Sequence[int], names: Sequence[str], length: int, least_saved: float = LEAST_SAVED
) -> Packing | None:
    """Pack sequences, each into the row of the one before it if it fits and has the same name.

    Args:
        lengths: Number of tokens of each sequence.
        names: What only equal ones may share a row, such as their expert.
        length: Number of tokens of a row; at least that of the longest sequence.
        least_saved: Share of the padded tokens that must be saved.

    Returns:
        The packing, or None if it saves less.
    """
    places: list[tuple[int, int]] = []
    row, end = -1, length
    for number, count in enumerate(lengths):
        if end + count > length or (number and names[number] != names[number - 1]):
            row, end = row + 1, 0
        places.append((row, end))
        end += count
    saved = 1 - (row + 1) / max(1, len(lengths))
    return Packing(tuple(places), tuple(lengths), row + 1, length) if saved >= max(least_saved, 1e-9) else None
