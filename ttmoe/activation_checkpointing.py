"""Activation checkpointing of layers whose output depends on state outside them.

The backward pass recomputes a checkpointed layer, perhaps after another forward pass with other experts. The layer must
then apply the updates of its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ttmoe.architectures import layer_list
from ttmoe.errors import InputError

StateSnapshot = Callable[[], Callable[[], AbstractContextManager[None]]]
"""Called in a forward pass. Returns a function that opens a context in which the state of that moment is restored."""


def restore_on_recompute(model: nn.Module, snapshot: StateSnapshot) -> None:
    """Make every checkpointed layer of a transformers model recompute in the state of its forward pass.

    A second call with the same ``snapshot`` has no effect.

    Raises:
        InputError: If the model uses reentrant checkpointing.
    """
    for layer in layer_list(model):
        checkpoint = getattr(layer, "_gradient_checkpointing_func", None)
        if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
            raise InputError("experts cannot be trained with reentrant checkpointing: the layers share their factors",
                             where="bank", fix="checkpoint with use_reentrant=False")  # fmt: skip
        if checkpoint is not None and getattr(checkpoint, "snapshot", None) != snapshot:
            layer._gradient_checkpointing_func = _RestoringCheckpoint(checkpoint, snapshot)  # type: ignore[assignment]


class _RestoringCheckpoint:
    """A checkpoint function that takes a snapshot in the forward pass and restores it in the recomputation."""

    def __init__(self, checkpoint: Callable[..., Any], snapshot: StateSnapshot) -> None:
        self.checkpoint, self.snapshot = checkpoint, snapshot

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        restore = self.snapshot()

        def recompute(*args: Any) -> Any:
            with restore():
                return function(*args)

        return self.checkpoint(recompute, *args, **kwargs)
