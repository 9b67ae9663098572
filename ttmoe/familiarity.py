"""Detection of inputs that resemble none of a library's tasks, from the distance to the training rows of a task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttmoe.subspace import Subspace, whitening

# How much the router's score varies beside the distance. Of 0, 0.5, 1, 2 and 4 the best trade of unknown rows of other
# tasks against unknown rows of a library's own, on libraries of tasks that no benchmark reports.
SCORE_SHARE = 2.0


class Familiarity(nn.Module):
    """Negated half-relative Mahalanobis distance of a row to its task's training rows, with a threshold per task.

    The squared distance under the task's own scatter, minus half of the squared distance under the scatter of all tasks
    together. Ren et al., A Simple Fix to Mahalanobis Distance (arXiv 2106.09022), subtract the whole of the second
    term and share one scatter between the classes; here each task keeps its own, since its rows can all have one form.
    To it is added the router's score of that task, weighted (Hendrycks et al., Scaling Out-of-Distribution Detection,
    arXiv 1911.11132: the maximum logit).

    The buffers are saved with the router; their names are part of the file format.

    Args:
        width: Width of the router features.
        tasks: Number of tasks.
        directions: Number of directions of the subspace.
    """

    basis: Tensor
    means: Tensor
    whitenings: Tensor
    centre: Tensor
    around: Tensor
    score_weight: Tensor
    thresholds: Tensor

    def __init__(self, width: int, tasks: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(width, directions, dtype=torch.half))
        self.register_buffer("means", torch.zeros(tasks, directions))
        self.register_buffer("whitenings", torch.zeros(tasks, directions, directions, dtype=torch.half))
        self.register_buffer("centre", torch.zeros(directions))
        self.register_buffer("around", torch.zeros(directions, directions))  # whitening of the total scatter
        self.register_buffer("score_weight", torch.zeros(()))
        self.register_buffer("thresholds", torch.full((tasks,), -torch.inf))

    @classmethod
    def from_subspace(cls, subspace: Subspace) -> Familiarity:
        """Create the module from the tasks' means and scatters. The thresholds start at -inf: every row is familiar."""
        tasks, directions = subspace.means.shape
        familiarity = cls(len(subspace.basis), tasks, directions)
        familiarity.basis.copy_(subspace.basis)
        familiarity.means.copy_(subspace.means)
        familiarity.whitenings.copy_(whitening(subspace.scatters))
        familiarity.centre.copy_(subspace.centre)
        familiarity.around.copy_(whitening(subspace.total_scatter))
        return familiarity

    @torch.no_grad()
    def forward(self, features: Tensor, experts: Tensor, scores: Tensor | float = 0.0) -> Tensor:
        """Score how well each row matches the training rows of the task it is routed to.

        Args:
            features: Standardised features, (rows, width).
            experts: Index of each row's task, (rows,).
            scores: The router's score of each row's task, (rows,).

        Returns:
            Scores (rows,), fp32. Higher means more familiar.
        """
        return self.relative_distances(features, experts) + self.score_weight * scores

    @torch.no_grad()
    def relative_distances(self, features: Tensor, experts: Tensor) -> Tensor:
        """Return the negated half-relative distance of each row to its task's training rows, (rows,), fp32."""
        projected = features @ self.basis.float()
        total_distances = ((projected - self.centre) @ self.around).square().mean(1)
        scores = torch.empty_like(total_distances)
        for task in experts.unique().tolist():
            rows = experts == task
            whitened = (projected[rows] - self.means[task]) @ self.whitenings[task].float()
            scores[rows] = 0.5 * total_distances[rows] - whitened.square().mean(1)
        return scores

    def fit_score_weight(self, distances: Tensor, scores: Tensor, experts: Tensor) -> None:
        """Set the weight so that, around the means of the tasks, the score varies ``SCORE_SHARE`` times as much.

        Args:
            distances: Relative distances of validation rows, (rows,).
            scores: The router's score of each row's task, (rows,).
            experts: Index of each row's task, (rows,).
        """
        parts = torch.stack([distances, scores])
        for task in experts.unique().tolist():
            parts[:, experts == task] -= parts[:, experts == task].mean(1, keepdim=True)
        distance, score = parts.square().mean(1).sqrt().tolist()
        self.score_weight.fill_(SCORE_SHARE * distance / score if score else 0.0)

    def fit_thresholds(self, scores: Tensor, experts: Tensor, fraction: float) -> None:
        """Set each task's threshold so that ``fraction`` of the rows routed to it fall below.

        Args:
            scores: Scores of validation rows, (rows,), from ``forward``.
            experts: Index of each row's task, (rows,).
            fraction: Fraction of unfamiliar rows, from 0 to 1. With 0, and for a task without rows, the threshold is
                -inf.
        """
        for task in range(len(self.thresholds)):
            task_scores = scores[experts == task]
            self.thresholds[task] = task_scores.quantile(fraction) if fraction and len(task_scores) else -torch.inf

    def lower_thresholds(self, scores: Tensor, experts: Tensor, fraction: float) -> None:
        """Lower each threshold until at most ``fraction`` of these rows fall below it. No threshold is raised.

        The arguments are those of ``fit_thresholds``.
        """
        for task in experts.unique().tolist():
            self.thresholds[task] = self.thresholds[task].minimum(scores[experts == task].quantile(fraction))

    def is_familiar(self, features: Tensor, experts: Tensor, scores: Tensor | float = 0.0) -> Tensor:
        """Return which rows reach the threshold of their task, (rows,), bool.

        A row with a value that is not finite is never familiar. The arguments are those of ``forward``.
        """
        return self(features, experts, scores) >= self.thresholds[experts]
