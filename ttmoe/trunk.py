"""The model cut at the trunk's top: states below the cut, computed once, and what the model makes of them.

Both halves run the model's own forward, so that masks, positions and norms are the architecture's: the lower half is
stopped at the cut, the upper half passes through the layers below it. Together they are the whole forward, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ttmoe.errors import InputError
from ttmoe.targets import layer_list


class Trunk:
    """The lowest ``depth`` layers of a transformers body, and the model above them.

    States are (rows, tokens, width) in the base's dtype and depend on the frozen base alone. They may be kept, and put
    together in other batches with other padding: the embeddings and masks of ``inputs`` are worked out anew (a lookup).
    One pass at a time uses a model. Raises InputError for a depth that the model does not have.
    """

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model, self.depth, self.layers = model, depth, list(layer_list(model))
        if not 0 <= depth <= len(self.layers):
            raise InputError(f"a trunk of {depth} layers is not in a base of {len(self.layers)}", where="trunk",
                             fix=f"give a depth from 0 to {len(self.layers)}")  # fmt: skip
        self._results: int | None = None

    @torch.no_grad()
    def states(self, inputs: dict[str, Tensor]) -> Tensor:
        """What layer ``depth`` reads (or the norm, at the model's top), without gradients and without dropout."""
        return _inputs_of(self.model, self.layers, self.depth, inputs)[-1]

    @torch.no_grad()
    def hidden_states(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Hidden states 0 (the embeddings) to ``depth`` from the same pass; the last are the trunk's states.

        As transformers numbers them, except that at the model's top these are the states before the last norm.
        """
        return tuple(_inputs_of(self.model, self.layers, self.depth, inputs))

    def above(self, states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The model's last hidden state (rows, tokens, width), from the states on. Gradients flow above the cut.

        Raises InputError for states of other rows or tokens than ``inputs``.
        """
        if states.shape[:2] != inputs["attention_mask"].shape:
            raise InputError(f"states of {tuple(states.shape[:2])} rows and tokens for inputs of "
                             f"{tuple(inputs['attention_mask'].shape)}", where="trunk",
                             fix="pad the states to the batch's tokens")  # fmt: skip
        if self.depth and self._results is None:
            self._results = self._count_results(inputs)
        passed: Any = (states, *[None] * (self._results - 1)) if self._results else states
        with _passed_through(self.layers[: self.depth], passed), _put_in(self.layers[self.depth :], states):
            return self.model(**inputs).last_hidden_state

    @torch.no_grad()
    def hidden_states_above(self, states: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Hidden states ``depth`` to the last, numbered and normed as transformers does, from the trunk's states."""
        seen: list[Tensor] = [] if self.depth == len(self.layers) else [states]

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        with ExitStack() as stack:
            for layer in self.layers[self.depth + 1 :]:
                stack.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
            last = self.above(states, inputs)
        return (*seen, last)

    @torch.no_grad()
    def _count_results(self, inputs: dict[str, Tensor]) -> int:
        """How many values a layer returns in a tuple; 0 where it returns the states alone.

        This differs between architectures and releases of transformers, and a wrong guess is silent. So one is asked.
        """
        kept: list[int] = []
        hook = self.layers[0].register_forward_hook(
            lambda module, args, out: kept.append(len(out) if isinstance(out, tuple) else 0)
        )
        try:
            _inputs_of(self.model, self.layers, 1, inputs)
        finally:
            hook.remove()
        return kept[0]


class _Reached(Exception):
    """The pass has come to the cut."""


def _inputs_of(model: nn.Module, layers: Sequence[nn.Module], depth: int, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What layers 0 to ``depth`` read; beyond the last layer: what it gives."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        if len(seen) > depth:
            raise _Reached

    def after(module: nn.Module, args: tuple, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)
        raise _Reached

    with ExitStack() as stack:
        stack.enter_context(_without_dropout(model))
        for layer in layers[: depth + 1]:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        if depth == len(layers):
            stack.callback(layers[-1].register_forward_hook(after).remove)
        try:
            model(**inputs)
        except _Reached:
            return seen
    raise RuntimeError(f"the model never came to layer {depth}")


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """States that are kept must not hold one pass's dropout."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _passed_through(layers: Sequence[nn.Module], result: Any) -> Iterator[None]:
    """These layers, still in their places and with their attributes, return ``result`` whatever they are given."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = lambda *args, **kwargs: result  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is not None:
                layer.forward = forward  # type: ignore[method-assign]
            else:
                vars(layer).pop("forward", None)


@contextmanager
def _put_in(layers: Sequence[nn.Module], states: Tensor) -> Iterator[None]:
    """The first of these layers, if any, reads ``states``: DeBERTa may convolve what the first layer below it gave."""

    def replace(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    hooks = [layer.register_forward_pre_hook(replace, with_kwargs=True) for layer in layers[:1]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
