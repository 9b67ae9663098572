"""Is a row like the rows of the task it is sent to, or like nothing that the router was made for?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttmoe.subspace import Subspace, whitening


class Familiarity(nn.Module):
    """How near a row lies to its task's training rows: half-relative Mahalanobis distance in a subspace.

    The squared distance by the task's own scatter, less half of that by the scatter of all tasks together (of Ren et
    al., A Simple Fix to Mahalanobis Distance, arXiv 2106.09022, who take off the whole), negated. What falls below the
    task's threshold is not known. A task's rows can all be of one form: its own scatter says more than a shared one.
    """

    basis: Tensor
    means: Tensor
    whitenings: Tensor
    centre: Tensor
    around: Tensor
    thresholds: Tensor

    def __init__(self, width: int, tasks: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(width, directions, dtype=torch.half))
        self.register_buffer("means", torch.zeros(tasks, directions))
        self.register_buffer("whitenings", torch.zeros(tasks, directions, directions, dtype=torch.half))
        self.register_buffer("centre", torch.zeros(directions))
        self.register_buffer("around", torch.zeros(directions, directions))
        self.register_buffer("thresholds", torch.full((tasks,), -torch.inf))

    @classmethod
    def of(cls, subspace: Subspace) -> Familiarity:
        """From how the tasks' rows lie; every row is known until thresholds are set."""
        tasks, directions = subspace.means.shape
        made = cls(len(subspace.basis), tasks, directions)
        made.basis.copy_(subspace.basis)
        made.means.copy_(subspace.means)
        made.whitenings.copy_(whitening(subspace.scatters))
        made.centre.copy_(subspace.centre)
        made.around.copy_(whitening(subspace.around))
        return made

    @torch.no_grad()
    def forward(self, features: Tensor, experts: Tensor) -> Tensor:
        """Familiarity (rows,) of standardised features (rows, width) with the tasks of index ``experts`` (rows,)."""
        low = features @ self.basis.float()
        common = ((low - self.centre) @ self.around).square().mean(1)
        found = torch.empty_like(common)
        for task in experts.unique().tolist():
            rows = experts == task
            own = (low[rows] - self.means[task]) @ self.whitenings[task].float()
            found[rows] = 0.5 * common[rows] - own.square().mean(1)
        return found

    def fit_thresholds(self, scores: Tensor, experts: Tensor, share: float) -> None:
        """Let ``share`` of the rows with these familiarities, of those sent to each task, fall below its threshold."""
        for task in range(len(self.thresholds)):
            own = scores[experts == task]
            self.thresholds[task] = own.quantile(share) if share and len(own) else -torch.inf

    def admit(self, scores: Tensor, experts: Tensor, share: float) -> None:
        """Lower thresholds where more than ``share`` of the rows with these familiarities would fall below."""
        for task in experts.unique().tolist():
            self.thresholds[task] = self.thresholds[task].minimum(scores[experts == task].quantile(share))

    def knows(self, features: Tensor, experts: Tensor) -> Tensor:
        """Which rows (rows,) are like their tasks. What is not finite is like nothing."""
        return self(features, experts) >= self.thresholds[experts]
