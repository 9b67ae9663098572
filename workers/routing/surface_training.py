"""Training of the part of a router that reads the surface of texts."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.surface import Ngrams, Surface

# Chosen on libraries of tasks that no table reports.
EPOCHS = 4
BATCH = 256
LR, OUTPUT_LR = 1e-2, 3e-3
DROPOUT = 0.3
_BEAT_STEPS = 20  # steps between two heartbeats


def fit_surface(tasks: int, ngrams: Ngrams, labels: Tensor, beat: Callable[[], Any]) -> Surface:
    """Train a surface by cross-entropy on the tasks of texts. Every task is sampled equally often.

    Args:
        tasks: Number of tasks.
        ngrams: The n-grams of the training texts.
        labels: Index of each text's task, (texts,).
        beat: Called every few steps.

    Returns:
        The surface, in eval mode.
    """
    surface = Surface(tasks)
    embedding = {"params": [*surface.embedding.parameters()], "lr": LR}
    output = {"params": [*surface.output.parameters()], "lr": OUTPUT_LR}
    optimizer = torch.optim.Adam([embedding, output])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * ceil(len(labels) / BATCH))
    probabilities = (1 / torch.bincount(labels, minlength=tasks).double())[labels]
    step = 0
    for _ in range(EPOCHS):
        order = torch.multinomial(probabilities, len(labels), replacement=True)
        for batch in order.split(BATCH):
            if step % _BEAT_STEPS == 0:
                beat()
            vectors = F.dropout(surface.embed(ngrams[batch]), DROPOUT)
            loss = F.cross_entropy(surface(vectors), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    return surface.eval().requires_grad_(False)


@torch.no_grad()
def embed_all(surface: Surface, ngrams: Ngrams, beat: Callable[[], Any]) -> Tensor:
    """Return the vectors (texts, width) of all texts, computed in parts; call ``beat`` every few parts."""
    vectors = []
    for number, part in enumerate(torch.arange(len(ngrams)).split(BATCH)):
        if number % _BEAT_STEPS == 0:
            beat()
        vectors.append(surface.embed(ngrams[part]))
    return torch.cat(vectors)
