"""The directions in which router features vary most, and how each task's rows are distributed along them.

Everything is computed in closed form, without training. The nearest task mean is a router of its own; the distance of a
row from its task's rows shows whether the row resembles the task (``ttmoe.familiarity``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DIRECTIONS = 512
MAX_VALUES = 64_000_000  # values in the scatter matrices of all tasks together, and in the basis
SAMPLE_ROWS = 8_000  # rows from which the directions are computed, an equal number per task
MAX_SAMPLE_VALUES = 500_000_000  # values in these rows
SHRINKAGE = 0.03  # weight of the target when a scatter matrix is shrunk towards a smoother one


@dataclass(frozen=True)
class Subspace:
    """Per-task means and scatters (covariances) of standardised features in a subspace of k directions.

    Every task has the same weight in ``within_scatter``, ``centre`` and ``total_scatter``, however many rows it has.

    Attributes:
        basis: Orthonormal directions, (width, k).
        means: Mean of each task's rows, (tasks, k).
        scatters: Scatter of each task's rows about their mean, (tasks, k, k), shrunk towards ``within_scatter``.
        within_scatter: Mean of the tasks' scatters, (k, k), shrunk towards a multiple of the identity.
        centre: Mean of the tasks' means, (k,).
        total_scatter: Scatter of all rows about ``centre``, (k, k), shrunk towards a multiple of the identity.
    """

    basis: Tensor
    means: Tensor
    scatters: Tensor
    within_scatter: Tensor
    centre: Tensor
    total_scatter: Tensor

    @classmethod
    def fit(cls, rows: Sequence[Tensor], standardise: Callable[[Tensor], Tensor], chunk: int = 4096) -> Subspace:
        """Compute the subspace from the features of each task's training rows.

        Args:
            rows: For each task its features, (rows, width), of any float dtype.
            standardise: Maps features to standardised fp32 features. It is called on at most ``chunk`` rows, and on a
                sample of each task.
            chunk: Rows that are held in full precision at a time.
        """
        width = rows[0].shape[1]
        sampled = max(2, min(1200, min(SAMPLE_ROWS, MAX_SAMPLE_VALUES // width) // len(rows)))
        sample = torch.cat([standardise(task[:sampled]) for task in rows])
        size = min(max_directions(width, len(rows)), max(1, len(sample) // 4))
        with torch.random.fork_rng(devices=[]):  # pca_lowrank draws random projections: a fixed seed repeats them
            torch.manual_seed(0)
            basis = torch.pca_lowrank(sample, q=size, niter=2)[2]
        means, scatters = [], []
        for task in rows:
            # Sums about a point near the mean: about the origin, nearly equal rows would lose all their digits.
            offset = standardise(task[:sampled]).mean(0) @ basis
            total, square = torch.zeros(size), torch.zeros(size, size)
            for part in task.split(chunk):
                projected = standardise(part) @ basis - offset
                total += projected.sum(0)
                square += projected.T @ projected
            mean = total / len(task)
            means.append(offset + mean)
            scatters.append(square / len(task) - torch.outer(mean, mean))
        task_means, task_scatters = torch.stack(means), torch.stack(scatters)
        centre, mean_scatter = task_means.mean(0), task_scatters.mean(0)
        between_scatter = (task_means - centre).T @ (task_means - centre) / len(rows)
        within_scatter = _shrink(mean_scatter)
        return cls(basis, task_means, task_scatters.lerp(within_scatter, SHRINKAGE), within_scatter, centre,
                   _shrink(mean_scatter + between_scatter))  # fmt: skip

    def nearest_mean(self) -> tuple[Tensor, Tensor]:
        """Return the linear map whose highest score belongs to the task with the nearest mean.

        The distance is the Mahalanobis distance of ``within_scatter`` (Fisher's linear discriminant, equal priors).

        Returns:
            Weight (tasks, width) and bias (tasks,), for standardised features.
        """
        whitened = torch.linalg.solve(self.within_scatter, self.means.T).T
        return whitened @ self.basis.T, -0.5 * (whitened * self.means).sum(1)


def max_directions(width: int, tasks: int) -> int:
    """Return the largest number of directions for features of ``width`` and this number of tasks."""
    return max(1, min(MAX_DIRECTIONS, math.isqrt(MAX_VALUES // tasks), MAX_VALUES // width, width))


def whitening(scatter: Tensor) -> Tensor:
    """Return W (..., k, k) with W Wᵀ the inverse of ``scatter`` (..., k, k), so that rows times W have unit scatter."""
    # No general inverse: that of a batch fails in MKL on several threads, from about 192 directions on.
    identity = torch.eye(scatter.shape[-1]).to(scatter)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(scatter), identity, upper=False).mT


def _shrink(scatter: Tensor) -> Tensor:
    """Shrink towards the identity times the mean variance."""
    target = scatter.diagonal().mean().clamp(min=1e-6) * torch.eye(len(scatter))
    return scatter.lerp(target, SHRINKAGE)
