"""How the cores of a tensor train start: as in the paper, or at zero update with every scale fixed.

``core_shapes`` are (left bond, factor, right bond), input cores first; ``count`` is the number of layers that
are stacked, so every core comes back as (count, left, factor, right) in fp32, on the generator's device. The
same generator state gives the same cores. Without a generator they come from torch's global one, on the
default device (so that a plan can be made on the meta device).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CoreShape = tuple[int, int, int]


def paper_cores(core_shapes: Sequence[CoreShape], count: int, generator: torch.Generator | None) -> list[Tensor]:
    """Every core normal, divided by its Frobenius norm, as in the released code of arXiv 2504.21190.

    The update is not zero at the start, and its size falls by about sqrt(rank) with every further core.
    """
    cores = [_normal((count, *shape), generator) for shape in core_shapes]
    return [core / core.flatten(1).norm(dim=1)[:, None, None, None] for core in cores]


def zero_start_cores(
    core_shapes: Sequence[CoreShape], split: int, count: int, generator: torch.Generator | None
) -> list[Tensor]:
    """Cores whose update is exactly zero; ``split`` is the number of input cores.

    The first output core, core ``split``, is zero. Cores left of it are left-orthogonal and cores right of it
    right-orthogonal (uniform over such), so it is the orthogonality centre of the train (Oseledets 2011,
    section 3): the map from it to the update keeps Frobenius norms. Hence A has orthonormal rows, a step on
    the zero core moves the update by exactly that step's length, and its first gradient is an orthogonal
    projection of the weight's own, entries of the same mean square whatever the number of cores and the rank.
    (This needs bonds that are capped as in ``TTShape.ranks``; with wider ones cores are orthogonal only the
    other way round, and the scales are bounded.)
    """
    # Any output core could be zero, and trials found no difference. The first one touches the middle bond: it
    # plays LoRA's zero B with the input side whole, and as an inner core it has the most values for the first
    # step to move.
    cores = []
    for place, (left, factor, right) in enumerate(core_shapes):
        if place == split:
            core = torch.zeros((count, left, factor, right), device=_device(generator))
        elif place < split:
            core = _orthogonal(count, left * factor, right, generator)
        else:
            core = _orthogonal(count, factor * right, left, generator).mT
        cores.append(core.reshape(count, left, factor, right).contiguous())
    return cores


def _orthogonal(count: int, rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Random (count, rows, columns), columns orthonormal; or rows, where there are fewer of them."""
    normal = _normal((count, max(rows, columns), min(rows, columns)), generator)
    q, r = torch.linalg.qr(normal)
    # QR fixes signs its own way; times the signs of R's diagonal the result is uniform (Mezzadri 2007).
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q if rows >= columns else q.mT


def _normal(size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.randn(size, generator=generator, device=_device(generator), dtype=torch.float32)


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator else torch.get_default_device()
