"""Gradient checkpointing: a layer that the backward recomputes must see what it saw in the forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ttmoe.errors import InputError
from ttmoe.targets import layer_list

StateSnapshot = Callable[[], Callable[[], AbstractContextManager[None]]]
"""Called during a forward; what it gives opens, as often as asked, a context with that moment's state."""


def recompute_within(model: nn.Module, moment: StateSnapshot) -> None:
    """Have each checkpointed layer of a transformers model recompute within the ``moment`` of its forward.

    The backward comes later, perhaps after another forward with other experts. Calling this again changes nothing.
    Raises InputError for checkpointing of the reentrant kind.
    """
    for layer in layer_list(model):
        checkpoint = getattr(layer, "_gradient_checkpointing_func", None)
        if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
            raise InputError("reentrant checkpointing cannot train experts: layers share the experts' factors",
                             where="bank", fix="checkpoint with use_reentrant=False")  # fmt: skip
        if checkpoint is not None and getattr(checkpoint, "moment", None) != moment:
            layer._gradient_checkpointing_func = _Remembering(checkpoint, moment)  # type: ignore[assignment]


class _Remembering:
    """A checkpoint function that takes the state of the forward along."""

    def __init__(self, checkpoint: Callable[..., Any], moment: StateSnapshot) -> None:
        self.checkpoint, self.moment = checkpoint, moment

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = self.moment()

        def again(*args: Any) -> Any:
            with state():
                return function(*args)

        return self.checkpoint(again, *args, **kwargs)
