"""Initial cores of a tensor train: as in the paper, or for an update of exactly zero.

Arguments and results of the public functions: ``core_shapes`` are (left bond, factor, right bond), input cores first;
``count`` is the number of stacked layers. The cores are returned as tensors (count, left bond, factor, right bond) in
fp32 on the generator's device, and equal generator states give equal cores. Without a generator they are drawn from
torch's global one on the default device, so that a plan can be made on the meta device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CoreShape = tuple[int, int, int]


def paper_cores(core_shapes: Sequence[CoreShape], count: int, generator: torch.Generator | None) -> list[Tensor]:
    """Return normal cores divided by their Frobenius norm, as in the released code of arXiv 2504.21190.

    The update is not zero, and its size falls by about sqrt(rank) with every further core.
    """
    cores = [_normal((count, *shape), generator) for shape in core_shapes]
    return [core / core.flatten(1).norm(dim=1)[:, None, None, None] for core in cores]


def zero_start_cores(
    core_shapes: Sequence[CoreShape], split: int, count: int, generator: torch.Generator | None
) -> list[Tensor]:
    """Return cores whose update is exactly zero; ``split`` is the number of input cores.

    The first output core, core ``split``, is zero. Cores left of it are left-orthogonal and cores right of it
    right-orthogonal, drawn uniformly, which makes the zero core the orthogonality centre of the train (Oseledets 2011,
    section 3): the map from that core to the update keeps Frobenius norms. Hence A has orthonormal rows, a step on the
    zero core moves the update by exactly the step's length, and the core's first gradient is an orthogonal projection
    of the weight's gradient, with entries of the same mean square for any number of cores and any rank.

    This requires bonds that are capped as in ``TTShape.ranks``. With wider bonds cores are orthogonal in the other
    direction only, and the scales are bounded.
    """
    # Any output core could be the zero one, and trials found no difference. The first one touches the middle bond: it
    # has the role of LoRA's zero B while the input side stays complete, and as an inner core it has the most values
    # for the first step to move.
    cores = []
    for index, (left, factor, right) in enumerate(core_shapes):
        if index == split:
            core = torch.zeros((count, left, factor, right), device=_device(generator))
        elif index < split:
            core = _orthogonal(count, left * factor, right, generator)
        else:
            core = _orthogonal(count, factor * right, left, generator).mT
        cores.append(core.reshape(count, left, factor, right).contiguous())
    return cores


def _orthogonal(count: int, rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Draw matrices (count, rows, columns) with orthonormal columns, or orthonormal rows if there are fewer rows."""
    normal = _normal((count, max(rows, columns), min(rows, columns)), generator)
    q, r = torch.linalg.qr(normal)
    # QR has a sign convention; multiplying by the signs of R's diagonal makes the result uniform (Mezzadri 2007).
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q if rows >= columns else q.mT


def _normal(size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.randn(size, generator=generator, device=_device(generator), dtype=torch.float32)


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator else torch.get_default_device()
