"""Dropout whose mask belongs to the row: an expert draws the same masks alone, in any mixed batch and on any device.

A number in the mask is a hash of the row's key, the token's position and the column. It does not depend on the other
rows, on padding on the right, or on what was drawn before, so nothing has to be saved to draw it again. ``_mix`` is the
32-bit finaliser ``lowbias32`` (https://github.com/skeeto/hash-prospector). On a CPU it takes a third of the time of
torch's generator.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.transfer import constant_on

_LEVELS = 2**16  # a rate is rounded to one of so many: each hash gives two numbers of the mask
# Odd factors, with which no two rows, tokens or columns share a product; their sums are spread by ``_mix``.
_ROW, _TOKEN, _COLUMN = 0x9E3779B1 - 2**32, 0x85EBCA77 - 2**32, 0xC2B2AE3D - 2**32


def dropout_keys(seed: int, step: int, rows: Sequence[int]) -> Tensor:
    """Return keys for rows of one training step, which depend on the arguments alone.

    Args:
        seed: Seed of the expert.
        step: Number of the step.
        rows: Number of each row, from 0 to below 2^31.

    Returns:
        (rows, 2), int32, on the CPU. Column 0 is the same for all rows of the step.
    """
    words = torch.frombuffer(bytearray(random.Random(f"dropout {seed} {step}").randbytes(8)), dtype=torch.int32)
    own = torch.tensor(rows, dtype=torch.int32) * _ROW ^ words[1]
    return torch.stack([words[0].expand_as(own), own], dim=1)


def keys_at(sites: Sequence[str], keys: Tensor) -> Tensor:
    """Return the keys (sites, rows, 2) that rows with these ``keys`` have at each of the ``sites`` that drop."""
    codes = constant_on(keys.device, tuple(zlib.crc32(site.encode()) - 2**31 for site in sites), torch.int32)
    return keys ^ codes.reshape(-1, 1, 1)


def shared_key(keys: Tensor) -> Tensor:
    """Return the key (1, 2) of an input that rows of one expert share: the same for any of its rows in a step."""
    return F.pad(keys[:1, :1], (0, 1))


def dropout_by_row(x: Tensor, rates: Tensor | float, keys: Tensor | None) -> Tensor:
    """Drop numbers of each row and rescale the others to keep the mean.

    Args:
        x: The rows, (rows, width) or (rows, tokens, width).
        rates: Dropout rate from 0 to below 1 of each row, (rows,), fp64, or of all rows.
        keys: Key of each row, (rows, 2), int32. None draws keys from torch's global generator.

    Returns:
        As ``x``. A row with rate 0 stays as it is.
    """
    if keys is None:
        keys = torch.randint(-(2**31), 2**31, (len(x), 2), dtype=torch.int32, device=x.device)
    rows = x.reshape(len(x), -1, x.shape[-1])
    lowest_kept: Tensor | int
    scale: Tensor | float
    if isinstance(rates, float):
        lowest_kept, scale = min(round(rates * _LEVELS), _LEVELS - 1) - _LEVELS // 2, 1 / (1 - rates)
    else:
        rates = rates.reshape(-1, 1, 1)
        lowest_kept = ((rates * _LEVELS).round().clamp(max=_LEVELS - 1) - _LEVELS // 2).to(torch.int16)
        scale = (1 / (1 - rates)).to(x.dtype)
    dropped = _uniform(keys, rows.shape[1], rows.shape[2]) < lowest_kept
    return (rows.masked_fill(dropped, 0) * scale).reshape(x.shape)


def _uniform(keys: Tensor, tokens: int, width: int) -> Tensor:
    """Return numbers that are uniform over int16, (rows, tokens, width)."""
    positions = torch.arange(tokens, dtype=torch.int32, device=keys.device) * _TOKEN
    columns = torch.arange((width + 1) // 2, dtype=torch.int32, device=keys.device) * _COLUMN
    of_token = _mix((positions ^ keys[:, :1]) + keys[:, 1:])
    return _mix(of_token.unsqueeze(-1) + columns).view(torch.int16)[..., :width]


def _mix(x: Tensor) -> Tensor:
    """Hash int32 numbers in place, one to one. Products and sums wrap around."""
    x ^= _shift_right(x, 16)
    x *= 0x7FEB352D
    x ^= _shift_right(x, 15)
    x *= 0x846CA68B - 2**32
    x ^= _shift_right(x, 16)
    return x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift in zeros, as for unsigned numbers."""
    return (x >> bits).bitwise_and_(2 ** (32 - bits) - 1)
