"""CUDA graphs of what a training repeats: the host issues all kernels of a pass or an update with one call.

Small passes keep a GPU waiting: a step of MiniLM's size issues 800 kernels that take 2 ms, and issuing them takes many
times as long. A graph is recorded of the third pass of a form, and computes the passes of that form after it; rows are
padded to a few lengths, so that there are few forms.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ttmoe.quantization import count_numbers
from ttmoe.transfer import constants_used

Tensors = dict[str, Tensor]
Compute = Callable[[Tensors], list[Tensor]]
Replay = Callable[[], list[Tensor]]

# Passes with more multiplications take a GPU longer than the host. Their graphs would only cost memory.
MOST_FLOPS = 2.5e13
MOST_GRAPHS = 64  # of one training; each has its inputs, and all share the memory of the passes
EAGER_RUNS = 2  # before a graph is recorded: gradients and the optimizer's moments must exist, kernels be chosen
_LOG = logging.getLogger("ttmoe")


class GraphRecorder(Protocol):
    """Records a computation whose tensors stay at their addresses."""

    def record(self, compute: Callable[[], list[Tensor]]) -> Replay:
        """Record ``compute`` without running it, and return a function that runs it and returns its results.

        Raises:
            RuntimeError: If it cannot be recorded.
        """


class Graphs:
    """The graphs of one training.

    Args:
        parameters: Number of parameters of the base.
        recorder: Records graphs; None records none.
    """

    def __init__(self, parameters: int, recorder: GraphRecorder) -> None:
        self._most_tokens, self._recorder = int(most_tokens(parameters)), recorder
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recording] = {}
        self._enabled = True

    def padded_length(self, longest: int, most: int, sequences: int) -> int:
        """Return the tokens to which to pad a pass.

        Lengths are rounded up to a multiple of about an eighth, so that passes have few forms.

        Args:
            longest: Tokens of its longest sequence.
            most: Tokens of the longest sequence that any pass can have.
            sequences: Number of its sequences, or of rows.
        """
        if not self._enabled or longest * sequences > self._most_tokens:
            return longest
        multiple = max(8, 2 ** (longest.bit_length() - 4))
        return min(-(-longest // multiple) * multiple, most)

    def run(self, key: Hashable, inputs: Tensors, compute: Compute) -> list[Tensor]:
        """Return ``compute(inputs)``, from a graph if there have been enough computations with this key.

        Args:
            key: What computations have in common if they differ in the values of ``inputs`` alone.
            inputs: Tensors on the device.
            compute: What to compute. Its results are valid until the next call.
        """
        tokens = inputs["input_ids"].numel() if "input_ids" in inputs else 0
        if not self._enabled or tokens > self._most_tokens:
            return compute(inputs)
        if key not in self._recorded:
            self._seen[key] += 1
            if self._seen[key] <= EAGER_RUNS or not self._record(key, inputs, compute):
                return compute(inputs)
        recording = self._recorded[key]
        for name, value in inputs.items():
            recording.inputs[name].copy_(value, non_blocking=True)
        return recording.replay()

    def _record(self, key: Hashable, inputs: Tensors, compute: Compute) -> bool:
        if len(self._recorded) >= MOST_GRAPHS:
            return False
        own = {name: value.clone() for name, value in inputs.items()}
        try:
            with constants_used() as constants:
                self._recorded[key] = _Recording(own, self._recorder.record(lambda: compute(own)), constants)
        except RuntimeError as error:  # too little memory, or an operation that cannot be recorded
            self._enabled = False
            self._recorded.clear()  # their memory is wanted
            _LOG.info("Passes are issued kernel by kernel: %s", error)
        return self._enabled


@dataclass(frozen=True)
class _Recording:
    """A graph: the tensors that it reads, what runs it, and the constants whose addresses it has."""

    inputs: Tensors
    replay: Replay
    constants: list[Tensor]


def make_graphs(model: torch.nn.Module, device: torch.device) -> Graphs | None:
    """Return the graphs of a training on this device; None on a CPU, which has none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return Graphs(sum(map(count_numbers, model.parameters())), _CudaRecorder())


def most_tokens(parameters: int) -> float:
    """Return the largest number of padded tokens of a pass of which a graph is recorded.

    Args:
        parameters: Number of parameters of the base. A token takes two operations for each in a forward pass, and two
            for the gradient of its states.
    """
    return MOST_FLOPS / (4 * parameters)


class _CudaRecorder:
    """Records CUDA graphs, which share their memory: only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], list[Tensor]]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the GPU meanwhile, as those that build gradients do.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = compute()

        def replay() -> list[Tensor]:
            graph.replay()
            return results

        return replay
