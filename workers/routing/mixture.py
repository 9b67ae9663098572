"""The rows of all tasks, from which a router is trained and on which it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FEATURE_CHUNK = 4096  # rows that are converted to full precision at a time


def no_beat() -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Mixture:
    """Rows of all tasks of one split.

    Attributes:
        features: Features (rows, width), fp16.
        labels: Index of each row's task (rows,); ``by_task`` requires ascending order.
        surface: Vectors of the rows' surfaces (rows, width of the surface), if a router reads them.
        chunk_rows: Rows that are converted to full precision at a time; None for ``FEATURE_CHUNK``.
        beat: Called for each chunk of rows that is read, for example to report a heartbeat.
    """

    features: Tensor
    labels: Tensor
    surface: Tensor | None = None
    chunk_rows: int | None = None
    beat: Callable[[], Any] = no_beat

    @classmethod
    def from_tasks(
        cls,
        parts: Iterable[Tensor],
        counts: Sequence[int],
        surface: Tensor | None = None,
        chunk_rows: int | None = None,
        beat: Callable[[], Any] = no_beat,
    ) -> Mixture:
        """Put the features (rows, width) of all tasks together; only those of one part are in memory twice.

        Args:
            parts: Features, made one after another: one part or several of each task, in the order of the tasks.
            counts: Rows of each task.
            surface: See the class.
            chunk_rows: See the class.
            beat: See the class; also called for each part.
        """
        features, end = torch.empty(0), 0
        for rows in parts:  # `enumerate` and `zip` would keep them until the next part is made
            if not end:
                features = rows.new_empty(sum(counts), rows.shape[1])
            features[end : end + len(rows)] = rows
            end += len(rows)
            del rows
            beat()
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return cls(features, labels, surface, chunk_rows, beat)

    @property
    def chunk(self) -> int:
        """Rows that are converted to full precision at a time."""
        return self.chunk_rows or FEATURE_CHUNK

    def chunks(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the features chunk by chunk, in order, each with the vectors of the surface, if there are any."""
        tensors = (self.features,) if self.surface is None else (self.features, self.surface)
        for part in zip(*(tensor.split(self.chunk) for tensor in tensors), strict=True):
            self.beat()
            yield part

    def by_task(self) -> list[Tensor]:
        """Return the features (rows, width) of each task."""
        return list(self.features.split(torch.bincount(self.labels).tolist()))

    def scores(self, score: Callable[..., Tensor]) -> Tensor:
        """Return the scores (rows, tasks) of all rows, computed by ``score`` from chunks, without gradients."""
        with torch.no_grad():
            return torch.cat([score(*part) for part in self.chunks()])
