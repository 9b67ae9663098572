"""Split a model at a layer: run the layers below once, keep their output, and run the layers above from it.

Both parts call the model's own ``forward``, so masks, positions and norms are computed as the architecture defines
them. The lower part stops at the split; the upper part skips the layers below it. On the same batch, both parts
together give the same bits as one whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ttmoe.architectures import ARCHITECTURES, architecture_of, layer_list
from ttmoe.errors import InputError

Use = Callable[[int, Tensor], Any]
"""What to do with a hidden state: called with its index and its states (rows, tokens, width) as soon as the pass
reaches it. Only what it returns is kept, so that a pass holds one or two hidden states at a time."""


class Trunk:
    """A transformers body (a model without its head), split above its lowest ``depth`` layers.

    The states at the split have the shape (rows, tokens, width) and the base's dtype. Adapters do not change them, so
    the states of a row can be cached and padded into other batches. ``run_above`` applies the adapters that are active.
    Do not use one model in two threads at a time.

    ``inputs`` are a tokenised batch: ``input_ids`` and ``attention_mask``, each (rows, tokens).

    Args:
        model: Transformers body.
        depth: Number of layers in the trunk, from 0 to the number of layers.

    Raises:
        InputError: If ``depth`` is negative or larger than the number of layers.
    """

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model, self.depth, self.layers = model, depth, list(layer_list(model))
        if not 0 <= depth <= len(self.layers):
            raise InputError(f"a trunk of {depth} layers does not fit a base of {len(self.layers)} layers",
                             where="trunk", fix=f"use a depth from 0 to {len(self.layers)}")  # fmt: skip
        self._outputs: int | None = None

    @torch.no_grad()
    def states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the states at the split (rows, tokens, width): the input of layer ``depth``, without dropout.

        At the full depth they are the output of the last layer, before the final norm.
        """
        return self.hidden_states(inputs, lambda index, states: states if index == self.depth else None)[-1]

    @torch.no_grad()
    def hidden_states(self, inputs: dict[str, Tensor], use: Use = lambda index, states: states) -> tuple[Any, ...]:
        """Return ``use`` of hidden states 0 (the embeddings) to ``depth``, without dropout; by default the states.

        The last states equal ``states(inputs)``. They equal transformers' ``hidden_states``, except that the output
        of the model's last layer is taken before the final norm.
        """
        return tuple(_layer_inputs(self.model, self.layers, self.depth, inputs, use))

    def run_above(self, states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Run the layers above the split, with the active adapters. Gradients flow through these layers.

        Args:
            states: The trunk's states for ``inputs``.
            inputs: The tokenised batch.

        Returns:
            The model's last hidden state (rows, tokens, width).

        Raises:
            InputError: If the rows or tokens of ``states`` differ from those of ``inputs``.
        """
        if states.shape[:2] != inputs["input_ids"].shape:
            raise InputError(f"states of shape {tuple(states.shape[:2])} (rows, tokens) for inputs of shape "
                             f"{tuple(inputs['input_ids'].shape)}", where="trunk",
                             fix="pad the states to the batch's tokens")  # fmt: skip
        if self.depth and self._outputs is None:
            self._outputs = self._count_outputs(inputs)
        output: Any = (states, *[None] * (self._outputs - 1)) if self._outputs else states
        with _skipped(self.layers[: self.depth], output), _input_replaced(self.layers[self.depth :], states):
            return self.model(**inputs).last_hidden_state

    @torch.no_grad()
    def hidden_states_above(
        self, states: Tensor, inputs: dict[str, Tensor], use: Use = lambda index, states: states
    ) -> tuple[Any, ...]:
        """Return ``use`` of hidden states ``depth`` to the last, as transformers defines them; by default the states.

        They are computed from the trunk's states.
        """
        above = self.depth + 1
        used = [] if self.depth == len(self.layers) else [use(self.depth, states)]
        with _inputs_used(self.layers[above:], lambda index, inner: used.append(use(above + index, inner))):
            last = self.run_above(states, inputs)
        return (*used, use(len(self.layers), last))

    @torch.no_grad()
    def _count_outputs(self, inputs: dict[str, Tensor]) -> int:
        """Return the number of values in the tuple that a layer returns; 0 if it returns the states alone.

        It differs between architectures and releases of transformers, and a wrong number fails silently, so a layer is
        run to find out.
        """
        counts: list[int] = []
        hook = self.layers[0].register_forward_hook(
            lambda module, args, output: counts.append(len(output) if isinstance(output, tuple) else 0)
        )
        try:
            _layer_inputs(self.model, self.layers, 1, inputs, lambda index, states: None)
        finally:
            hook.remove()
        return counts[0]


@torch.no_grad()
def use_hidden_states(model: nn.Module, inputs: dict[str, Tensor], use: Use) -> list[Any]:
    """Return ``use`` of every hidden state of a whole pass, as transformers defines them: the last has the final norm.

    With ``output_hidden_states`` all of them would be in memory at a time.

    Args:
        model: Transformers body.
        inputs: The tokenised batch.
        use: What to return of each hidden state.
    """
    if architecture_of(model) not in ARCHITECTURES:  # what its layers receive may have another layout, as in XLNet
        return [use(index, states) for index, states in enumerate(model(**inputs, output_hidden_states=True)[-1])]
    used: list[Any] = []
    with _inputs_used(list(layer_list(model)), lambda index, states: used.append(use(index, states))):
        last = model(**inputs).last_hidden_state
    return [*used, use(len(used), last)]


def keeps_hidden_states(model: nn.Module) -> bool:
    """Return whether all hidden states of a whole pass are in memory at a time all the same.

    DeBERTa's forward keeps them, and an architecture without an entry in ``ARCHITECTURES`` is asked for them.
    """
    return architecture_of(model) not in ARCHITECTURES or architecture_of(model).startswith("deberta")


class _StopForward(Exception):
    """Raised in a hook to stop the model's forward at the split."""


def _layer_inputs(
    model: nn.Module, layers: Sequence[nn.Module], depth: int, inputs: dict[str, Tensor], use: Use
) -> list[Any]:
    """Return ``use`` of the inputs of layers 0 to ``depth``; the output of the last layer counts as one more input."""
    used: list[Any] = []

    def before(index: int, states: Tensor) -> None:
        used.append(use(index, states))
        if index == depth:
            raise _StopForward

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        used.append(use(depth, output[0] if isinstance(output, tuple) else output))
        raise _StopForward

    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))  # cached states must not contain the dropout of one pass
        stack.enter_context(_inputs_used(layers[: depth + 1], before))
        if depth == len(layers):
            stack.callback(layers[-1].register_forward_hook(after).remove)
        try:
            model(**inputs)
        except _StopForward:
            return used
    raise RuntimeError(f"the model's forward did not reach layer {depth}")


@contextmanager
def _inputs_used(layers: Sequence[nn.Module], use: Use) -> Iterator[None]:
    """Call ``use`` with the number and the input of each of ``layers`` before it runs."""
    with ExitStack() as stack:
        for index, layer in enumerate(layers):

            def before(module: nn.Module, args: tuple, kwargs: dict[str, Any], index: int = index) -> None:
                use(index, args[0] if args else kwargs["hidden_states"])

            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within this context; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _skipped(layers: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Make ``layers`` return ``output`` for any input; they stay in the model and keep their attributes."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = lambda *args, **kwargs: output  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is not None:
                layer.forward = forward  # type: ignore[method-assign]
            else:
                vars(layer).pop("forward", None)


@contextmanager
def _input_replaced(layers: Sequence[nn.Module], states: Tensor) -> Iterator[None]:
    """Pass ``states`` to the first of ``layers``, if any: DeBERTa may convolve the output of the layers below."""

    def replace(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    hooks = [layer.register_forward_pre_hook(replace, with_kwargs=True) for layer in layers[:1]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
