"""The directions in which router features differ most, and how each task's rows lie in them.

Closed form, no training: the mean of every task and how its rows scatter about it. The nearest mean is a router of its
own, and how far a row lies from its task's rows says whether it is like them at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 512  # directions, at most
MOST = 64_000_000  # numbers in all tasks' scatter, and in the directions
SAMPLE = 8_000  # rows that the directions are taken from, every task alike
MOST_SAMPLED = 500_000_000  # numbers in these rows
SHRINKAGE = 0.03  # of a task's scatter towards that of all tasks, and of that towards its mean variance


@dataclass(frozen=True)
class Subspace:
    """``basis`` (width, k); in it ``means`` (tasks, k) and ``scatters`` (tasks, k, k) about them; ``within`` (k, k) is
    the mean scatter, every task counting alike; ``centre`` (k,) and ``around`` (k, k) are those of all rows as one.
    """

    basis: Tensor
    means: Tensor
    scatters: Tensor
    within: Tensor
    centre: Tensor
    around: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor], scaled: Callable[[Tensor], Tensor], chunk: int = 4096) -> Subspace:
        """From the features of each task's training rows, which ``scaled`` standardises a chunk at a time."""
        wide = rows[0].shape[1]
        share = max(2, min(1200, min(SAMPLE, MOST_SAMPLED // wide) // len(rows)))
        sample = torch.cat([scaled(task[:share]) for task in rows])
        width = min(directions(wide, len(rows)), max(1, len(sample) // 4))
        with torch.random.fork_rng(devices=[]):  # the directions come from random projections: always from the same
            torch.manual_seed(0)
            basis = torch.pca_lowrank(sample, q=width, niter=2)[2]
        points, scatters = [], []
        for task in rows:
            near = scaled(task[:share]).mean(0) @ basis  # about the origin, rows that are alike would lose all digits
            count, total, square = len(task), torch.zeros(width), torch.zeros(width, width)
            for part in task.split(chunk):
                low = scaled(part) @ basis - near
                total += low.sum(0)
                square += low.T @ low
            points.append(near + total / count)
            scatters.append(square / count - torch.outer(total / count, total / count))
        means, stacked = torch.stack(points), torch.stack(scatters)
        centre, mean_scatter = means.mean(0), stacked.mean(0)
        around = mean_scatter + (means - centre).T @ (means - centre) / len(rows)
        within = _shrunk(mean_scatter)
        return cls(basis, means, stacked.lerp(within, SHRINKAGE), within, centre, _shrunk(around))

    def nearest_mean(self) -> tuple[Tensor, Tensor]:
        """Weight (tasks, width) and bias (tasks,) of the linear map whose largest score is the nearest mean.

        Nearest as the mean scatter measures it (Mahalanobis; Fisher's linear discriminant).
        """
        scaled = torch.linalg.solve(self.within, self.means.T).T
        return scaled @ self.basis.T, -0.5 * (scaled * self.means).sum(1)


def directions(width: int, tasks: int) -> int:
    """How many directions there are at most, of so many features and tasks."""
    return max(1, min(WIDEST, math.isqrt(MOST // tasks), MOST // width, width))


def whitening(scatter: Tensor) -> Tensor:
    """W (..., k, k) with W Wᵀ the inverse of ``scatter``: rows times W have unit scatter."""
    return torch.linalg.inv(torch.linalg.cholesky(scatter)).mT


def _shrunk(scatter: Tensor) -> Tensor:
    even = scatter.diagonal().mean().clamp(min=1e-6) * torch.eye(len(scatter))
    return scatter.lerp(even, SHRINKAGE)
