"""Several sequences in one row of a batch, without attention from one to another: less padding where lengths differ.

Positions begin again with each sequence, by which transformers tells sequences apart that share a row: its masks then
are causal within each (``transformers.masking_utils.find_packed_sequence_indices``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttmoe.architectures import architecture_of
from ttmoe.chat_template import Tokens
from ttmoe.transfer import to_device

RowSpan = tuple[int, int, int]
"""A row of a batch, the first of some of its tokens, and the token after their last one."""

PACKED_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3",
                                  "gpt2", "gpt_neox", "gptj", "olmo2", "smollm3"})  # fmt: skip
"""Model types whose masks follow positions; in others, a token would see the sequences before its own."""

MOST_MASK = 2**28  # numbers of a mask, which padded rows do not need: a byte each, or as many as a state's numbers have
LEAST_SAVED = 1 / 8  # of the padded tokens; longer rows and the mask cost some of what fewer tokens gain


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
        # Padding has the positions of a sequence of its own, which begin at 0 after the last one's.
        positions, ends = torch.zeros_like(ids), [0] * self.rows
        for (row, first), sequence in zip(self.places, sequences, strict=True):
            end = first + len(sequence["input_ids"])
            ids[row, first:end] = torch.tensor(sequence["input_ids"])
            positions[row, first:end] = torch.arange(end - first)
            ends[row] = max(ends[row], end)
        for row, end in enumerate(ends):
            positions[row, end:] = torch.arange(self.length - end)
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
        of_rows = {row: name for (row, _), name in zip(self.places, names, strict=True)}
        return [of_rows[row] for row in range(self.rows)]

    def spans(self, spans: Sequence[RowSpan]) -> list[RowSpan]:
        """Return spans of tokens of sequences as spans of the rows, in the same order."""
        return [(self.places[number][0], self.places[number][1] + start, self.places[number][1] + end)
                for number, start, end in spans]  # fmt: skip


def allows_packing(model: nn.Module) -> bool:
    """Return whether sequences in one row of this model do not see each other; with a cache they would."""
    return architecture_of(model) in PACKED_ARCHITECTURES and not getattr(model.config, "use_cache", False)


def pack_sequences(
    lengths: Sequence[int], names: Sequence[str], padded: int, most: int, least_saved: float = LEAST_SAVED
) -> Packing | None:
    """Pack sequences into rows, those of equal names together.

    Rows of one to four times the longest sequence are tried, for sequences of similar length leave no room in a row of
    their own length. The packing with the fewest tokens is taken.

    Args:
        lengths: Number of tokens of each sequence.
        names: What only equal ones may share a row, such as their expert.
        padded: Number of tokens to which each would be padded.
        most: The largest number of tokens of a row, for its attention takes memory with the square of it.
        least_saved: Share of the padded tokens that must be saved.

    Returns:
        The packing, or None if it saves less, or its mask would be too large.
    """
    longest = max(lengths)
    limits = sorted({min(longest * quarters // 4, max(most, longest)) for quarters in range(4, 17)})
    best = min((_fill(lengths, names, limit) for limit in limits), key=lambda each: each.rows * each.length)
    saved = 1 - best.rows * best.length / (len(lengths) * padded)
    fits = best.rows * best.length**2 <= MOST_MASK
    return best if best.rows < len(lengths) and saved >= least_saved and fits else None


def _fill(lengths: Sequence[int], names: Sequence[str], most: int) -> Packing:
    """Put each sequence, the longest first, into the first row of its name that has room for it."""
    rows: list[tuple[str, int]] = []  # the name of each, and its tokens so far
    places = [(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        name, count = names[number], lengths[number]
        row = next((i for i, (of, end) in enumerate(rows) if of == name and end + count <= most), len(rows))
        if row == len(rows):
            rows.append((name, 0))
        places[number] = (row, rows[row][1])
        rows[row] = (name, rows[row][1] + count)
    return Packing(tuple(places), tuple(lengths), len(rows), max(end for _, end in rows))
