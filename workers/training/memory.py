"""Estimate of the peak memory of a training job, from the sizes of the base and the job's settings.

The tensors saved for the backward pass are counted one by one; the count agrees with what autograd saves (MiniLM 150 MB
a layer at 32 rows of 128 tokens; SmolLM2-135M 13 to 19 MB at 4). The overhead of allocators is measured. Peaks of whole
trainings on a CPU (2026-11, torch 2.13, transformers 5.23) were 0.66 to 1.06 of the estimate. Estimates for GPUs are
compared with the live tensors of steps of 8B models on fake tensors (``tests/live_bytes.py``); on an H200 the peaks of
two steps of a base of 8B were 0.80 and 0.97 of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ttmoe.adapter import AdapterSpec, Group, count_parameters, plan_groups
from ttmoe.base import Base
from ttmoe.batching import BATCH_ROWS, batch_tokens
from ttmoe.language_head import MAX_POSITIONS, is_tied
from ttmoe.placement import weight_bytes
from ttmoe.trunk import keeps_hidden_states
from workers.training.base_sizes import FP32_BYTES, BaseSizes
from workers.training.graphs import most_tokens
from workers.training.settings import ONE_PROCESS, TrainSettings

MB = 10**6
# A process with torch, transformers and ray on a CPU: 432 MB after the imports, 531 to 550 MB at its peak (2026-11).
PROCESS_BYTES = 560 * MB
# The same with CUDA's libraries: 2290 MB (3340 MB less twice the largest tensor) without ray (2026-11, torch 2.11).
PROCESS_BYTES_CUDA = 2500 * MB
# GPU memory of a process beside its tensors: 1380 MB on an H200 (2026-11, torch 2.11, CUDA 13.0).
CUDA_CONTEXT_BYTES = 1400 * MB
# Memory held by an allocator, relative to the saved tensors: it cannot reuse all freed blocks.
ALLOCATOR_FACTORS = {"cpu": 1.5, "cuda": 1.2}
# Numbers of weights that ZeRO 3 keeps gathered, at most, besides those of the map in use.
LIVE_NUMBERS = 500_000_000
HEAD_SCALE_BATCH = 64  # rows in a batch when the head's input scale is measured


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of one job, in bytes.

    Attributes:
        base: Weights of the frozen base.
        activations: Activations, gradients of activations, and what one layer holds at a time.
        optimizer: The optimizer's moments.
        process: The process itself: code and libraries.
        device: Type of the device that holds all but the process, ``cpu`` or ``cuda``.
        adapters: Trained weights, the copy of the best ones, and the low-rank factors that are made of them.
        gradients: Gradients of the trained weights.
        logits: Logits of a language head and their gradients.
        largest: The largest tensor of the base, which is in main memory, as read and as cast, on its way to a GPU.
        offloaded: Weights of the base in main memory beside a GPU.
    """

    base: int
    activations: int
    optimizer: int
    process: int
    device: str = "cpu"
    adapters: int = 0
    gradients: int = 0
    logits: int = 0
    largest: int = 0
    offloaded: int = 0

    @property
    def total(self) -> int:
        """Bytes in main memory and on the GPU together."""
        trained = self.adapters + self.gradients + self.optimizer
        return self.base + self.activations + self.logits + trained + self.process

    @property
    def gpu(self) -> int:
        """Bytes of GPU memory; 0 on a CPU."""
        return 0 if self.device == "cpu" else self.total - self.process + CUDA_CONTEXT_BYTES

    @property
    def host(self) -> int:
        """Bytes of main memory. With a GPU: the process, and two copies of a tensor of the base."""
        return self.total if self.device == "cpu" else self.process + 2 * self.largest + self.offloaded


def estimate_job_memory(
    model: nn.Module,
    base: Base,
    adapter: AdapterSpec,
    classes: int,
    train: TrainSettings,
    *,
    options: int = 1,
    experts: int = 1,
    device: str = "cpu",
    processes: int = 1,
) -> MemoryEstimate:
    """Estimate the peak memory of a job, in one of its processes, whose rows have the maximal length.

    Args:
        model: The base model without a head; may be on the meta device.
        base: The base.
        adapter: Adapter of the experts.
        classes: Outputs of the head; 0 for experts that generate text, which also load the language head.
        train: Training settings.
        options: Sequences of a row: its number of options, or 1.
        experts: Experts that train together.
        device: Device that trains.
        processes: Processes that train together: each has a share of a step's rows, and with ZeRO 3 of the base.

    Raises:
        InputError: If the adapter does not fit the base.
    """
    groups = plan_groups(model, adapter)
    sizes = BaseSizes.of(model, base, device)
    lowest = min(site.layer for group in groups for site in group.sites)
    tokens = sizes.tokens
    rows = max(1, train.batch_tokens // tokens) if train.batch_tokens else train.batch_size
    rows = math.ceil(rows / processes)
    rows = min(rows, train.rows_at_once or rows) * options
    if not train.rows_at_once:  # micro_batch bounds the rows of all experts together
        rows *= experts
    layer = rows * tokens * sizes.saved_bytes_per_token(_adapted_width(groups))
    depth = sizes.layers - lowest
    # A checkpointed layer saves only its input; in the backward pass one layer at a time is recomputed.
    saved = layer + rows * tokens * sizes.hidden * sizes.dtype_bytes * depth if train.recomputes else layer * depth
    # The low-rank factors of the adapters: built in fp32, cast, and their gradients.
    factors = 3 * FP32_BYTES * sum(_factor_numbers(group) for group in groups)
    without_gradients = max(HEAD_SCALE_BATCH * tokens, batch_tokens(sizes.device))
    factor = ALLOCATOR_FACTORS[sizes.device]
    if sizes.device != "cpu" and not train.recomputes:  # CUDA graphs of small passes have memory of their own
        parameters = sum(p.numel() for p in model.parameters())
        factor = max(factor, 1 + min(1.0, most_tokens(parameters) / (rows * tokens)))
    activations = math.ceil(factor * saved)
    if sizes.device == "cpu":  # memory freed by evaluations is not always there for the next step
        activations += sizes.transient_bytes(max(rows * tokens, without_gradients))
    else:
        activations += sizes.transient_bytes(rows * tokens)
        activations = max(activations, sizes.transient_bytes(without_gradients))
    trained = count_parameters(groups) + classes * (sizes.hidden + 1)
    head, logits = (0, 0) if classes else _language_head_bytes(model, sizes, copies=train.shards_base)
    weights, offloaded = _divided_bytes(model, sizes, base.quantize, train, processes)
    return MemoryEstimate(
        base=weights + head,
        activations=activations,
        optimizer=experts * trained * FP32_BYTES * 2,  # the two moments of Adam
        process=_process_bytes(sizes.device),
        device=sizes.device,
        adapters=experts * (trained * FP32_BYTES * 2 + factors),
        gradients=experts * trained * FP32_BYTES,
        logits=logits,
        largest=_largest_bytes(model, sizes.dtype_bytes),
        offloaded=offloaded,
    )


def estimate_pass_memory(
    model: nn.Module, base: Base, device: str, train: TrainSettings = ONE_PROCESS, processes: int = 1
) -> MemoryEstimate:
    """Estimate the peak memory of passes without gradients through the base, in batches as ``ttmoe.batching`` says.

    Args:
        model: The base model without a head; may be on the meta device.
        base: The base.
        device: Device of the base.
        train: Training settings that name the engine; by default that of one process.
        processes: Processes that make the passes together.
    """
    sizes = BaseSizes.of(model, base, device)
    tokens = max(sizes.tokens, min(BATCH_ROWS * sizes.tokens, batch_tokens(sizes.device)))
    # Hidden states are pooled one at a time, in fp32.
    kept = (sizes.layers + 1) * sizes.dtype_bytes if keeps_hidden_states(model) else 0
    activations = sizes.transient_bytes(tokens) + tokens * sizes.hidden * (FP32_BYTES + kept)
    weights, offloaded = _divided_bytes(model, sizes, base.quantize, train, processes)
    return MemoryEstimate(
        base=weights,
        activations=math.ceil(ALLOCATOR_FACTORS[sizes.device] * activations),
        optimizer=0,
        process=_process_bytes(sizes.device),
        device=sizes.device,
        largest=_largest_bytes(model, sizes.dtype_bytes),
        offloaded=offloaded,
    )


def _process_bytes(device: str) -> int:
    return PROCESS_BYTES if device == "cpu" else PROCESS_BYTES_CUDA


def _language_head_bytes(model: nn.Module, sizes: BaseSizes, *, copies: bool) -> tuple[int, int]:
    """Return the bytes of the language head, and of the logits computed at a time.

    A head that is tied to the embeddings takes none, unless the process has a copy of them.
    """
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    weights = 0 if is_tied(model.config) and not copies else vocabulary * sizes.hidden * sizes.dtype_bytes
    # Logits, an fp32 copy, and gradients of both; besides an fp32 softmax.
    return weights, MAX_POSITIONS * vocabulary * (2 * sizes.dtype_bytes + 3 * FP32_BYTES)


def _adapted_width(groups: list[Group]) -> int:
    """Return the width of the inputs of a layer's adapted maps; q, k and v share one input, as do up and gate."""
    shared = {"k": "q", "v": "q", "gate": "up"}
    return sum({shared.get(group.role, group.role): group.method.in_features for group in groups}.values())


def _factor_numbers(group: Group) -> int:
    """Return how many numbers the low-rank factors of a group's sites have."""
    method = group.method
    return len(group.sites) * method.rank * (method.in_features + method.out_features)


def _largest_bytes(model: nn.Module, dtype_bytes: int) -> int:
    return max(tensor.numel() for tensor in model.parameters()) * dtype_bytes


def _divided_bytes(
    model: nn.Module, sizes: BaseSizes, quantize: str, train: TrainSettings, processes: int
) -> tuple[int, int]:
    """Return the bytes of a process's weights on its device, and of those in main memory beside a GPU."""
    whole = weight_bytes(model, sizes.dtype_bytes, quantize)
    if not train.shards_base:
        return whole, 0
    part = math.ceil(whole / processes)
    gathered = min(whole, LIVE_NUMBERS * sizes.dtype_bytes + _largest_bytes(model, sizes.dtype_bytes))
    offload = train.deepspeed.offload_param
    if offload == "none" or sizes.device == "cpu":
        return min(whole, part) + gathered, 0
    return gathered, part if offload == "cpu" else 0
