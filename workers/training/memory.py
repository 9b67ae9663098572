"""How much memory a training job takes at its peak: a formula over the base's sizes and the job's settings.

What a backward pass keeps is counted tensor by tensor and agrees with what autograd saves (MiniLM 150 MB a layer at 32
rows of 128 tokens; SmolLM2-135M 13 to 19 MB at 4). What allocators take beyond it is measured. Peaks of whole trainings
on a CPU (2026-11, torch 2.13, transformers 5.23) came to 0.66 to 1.06 of the estimate. On GPUs it is not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ttmoe.adapter import AdapterSpec, Group, count_parameters, plan_groups
from ttmoe.base import Base
from ttmoe.language_head import MAX_POSITIONS, is_tied
from ttmoe.targets import ARCHITECTURES, architecture_of, layer_list
from workers.training.evaluation import TOKENS, TOKENS_ON_GPU
from workers.training.settings import TrainSettings

MB = 10**6
PROCESS = 560 * MB  # torch, transformers and ray at work, on a CPU: 432 MB imported, 531 to 550 at its peak (2026-11)
PROCESS_CUDA = 2500 * MB  # the same with CUDA's libraries: customary, not measured
CONTEXT_CUDA = 500 * MB  # what a process takes of a GPU before its first tensor: customary, not measured
HELD = {"cpu": 1.5, "cuda": 1.2}  # of what is saved, with what an allocator cannot use again
SCALE_ROWS = 64  # rows that go through the base at once to find the head's scale
FP32 = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one job at its peak: the frozen ``base``, ``activations``, ``optimizer`` (trained weights, gradients,
    moments and the best copy), and the ``process`` itself; ``device`` is where the first three lie.
    """

    base: int
    activations: int
    optimizer: int
    process: int
    device: str = "cpu"

    @property
    def total(self) -> int:
        """All of it, wherever it lies."""
        return self.base + self.activations + self.optimizer + self.process

    @property
    def gpu(self) -> int:
        """What lies on the GPU; none without one."""
        return 0 if self.device == "cpu" else self.total - self.process + CONTEXT_CUDA

    @property
    def host(self) -> int:
        """What lies in the machine's memory: with a GPU the process, and the base on its way."""
        return self.total if self.device == "cpu" else self.process + self.base


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
) -> MemoryEstimate:
    """The peak of a job that trains ``experts`` such experts at a time on one base, rows as long as the base reads.

    ``model`` is the base's body, which may be on the meta device; ``options`` are the sequences that a row makes (of a
    choice: its options). With no ``classes`` the experts write, and the base's language head is there too. Raises
    InputError for an adapter that does not fit the base.
    """
    groups = plan_groups(model, adapter)
    body = _Body.of(model, base, device)
    lowest = min(site.layer for group in groups for site in group.sites)
    tokens = body.tokens
    rows = max(1, train.batch_tokens // tokens) if train.batch_tokens else train.batch_size
    rows = min(rows, train.micro_batch or rows) * options
    if not train.micro_batch:  # which holds for all experts together
        rows *= experts
    layer = rows * tokens * body.saved_per_token(_adapted_width(groups))
    depth = body.layers - lowest
    # A checkpointed layer keeps its input alone; one at a time is whole again in the backward.
    saved = layer + rows * tokens * body.hidden * body.size * depth if train.checkpointing else layer * depth
    factors = 3 * FP32 * sum(_factors(group) for group in groups)  # built, cast, and their gradients
    evaluated = TOKENS if body.kind == "cpu" else TOKENS_ON_GPU
    passing = body.passing(max(max(rows, SCALE_ROWS) * tokens, evaluated))
    trained = count_parameters(groups) + classes * (body.hidden + 1)
    head, logits = (0, 0) if classes else _words(model, body)
    return MemoryEstimate(
        _bytes(model, body.size) + head,
        math.ceil(HELD[body.kind] * saved) + experts * factors + passing + logits,
        experts * trained * FP32 * 5,  # weights, gradients, two moments of Adam, the best weights so far
        PROCESS if body.kind == "cpu" else PROCESS_CUDA,
        body.kind,
    )


@dataclass(frozen=True)
class _Body:
    """The sizes of a base that decide what a pass through it takes; ``size`` is the bytes of a number."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    tokens: int
    size: int
    gated: bool
    upcasts: bool  # RMS norms, and the softmax of models that have them, compute in fp32
    drops: tuple[bool, bool]  # hidden states, attention
    kind: str

    @classmethod
    def of(cls, model: nn.Module, base: Base, device: str) -> _Body:
        config: Any = model.config
        layers = layer_list(model)
        maps = [m for m in layers[0].modules() if isinstance(m, nn.Linear)]
        places = ARCHITECTURES.get(architecture_of(model), ("", {}))[1]
        hidden = config.hidden_size
        widest = max((m.in_features for m in maps), default=4 * hidden)
        return cls(
            len(layers),
            hidden,
            getattr(config, "intermediate_size", None) or max(widest, 4 * hidden),
            config.num_attention_heads,
            min(base.max_length, getattr(config, "max_position_embeddings", None) or base.max_length),
            getattr(torch, base.dtype).itemsize,
            "gate" in places or any("gate" in name for name, _ in layers[0].named_modules()),
            not any(isinstance(m, nn.LayerNorm) for m in layers[0].modules()),
            (
                _drops(config, "hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout"),
                _drops(config, "attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"),
            ),
            "cpu" if device == "cpu" else "cuda",
        )

    def saved_per_token(self, adapted: int) -> float:
        """Bytes that one layer keeps of a token for the backward pass; ``adapted``: the width of adapted maps' inputs.

        Frozen maps keep nothing. Kept are q, k and v, what both norms read, what the activation reads and, if it
        gates, both factors of the product; behind dropout the noise, which only a GPU packs in bytes.
        """
        noise = self.size if self.kind == "cpu" else 1
        hidden = 3 * self.size + 2 * (FP32 if self.upcasts else self.size) + 2 * noise * self.drops[0]
        feed_forward = self.intermediate * self.size * (3 if self.gated else 1)
        return self.hidden * hidden + feed_forward + adapted * self.size + self._attention(noise)

    def _attention(self, noise: int) -> float:
        """Bytes of the attention weights that a token keeps; on a GPU they are never written out, but the output is."""
        if self.kind != "cpu":
            return self.hidden * self.size
        once = self.size + (FP32 if self.upcasts and self.size < FP32 else 0)
        return self.heads * self.tokens * (once + (noise + self.size) * self.drops[1])

    def passing(self, tokens: int) -> int:
        """Bytes that are alive at a time in one layer of a pass of so many tokens: three of a kind, six of states."""
        copies = 2 * FP32 if self.upcasts and self.size < FP32 else 0  # what is computed in fp32, and its result
        per_token = (4 if self.gated else 3) * self.intermediate * self.size + self.hidden * (6 * self.size + copies)
        if self.kind == "cpu":
            per_token += self.heads * self.tokens * (3 * self.size + copies)
        return tokens * per_token


def _words(model: nn.Module, body: _Body) -> tuple[int, int]:
    """Bytes of the language head, where it has weights of its own, and of the logits that are there at a time."""
    words: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    own = 0 if is_tied(model.config) else words * body.hidden * body.size
    return own, MAX_POSITIONS * words * (2 * body.size + 3 * FP32)  # both with gradients; in fp32 the softmax besides


def _adapted_width(groups: list[Group]) -> int:
    """The width of all inputs that adapted maps of a layer read; q, k and v read one, as do up and gate."""
    shared = {"k": "q", "v": "q", "gate": "up"}
    return sum({shared.get(group.role, group.role): group.method.in_features for group in groups}.values())


def _factors(group: Group) -> int:
    """Numbers in the low-rank factors of a group's sites."""
    method = group.method
    return len(group.sites) * method.rank * (method.in_features + method.out_features)


def _drops(config: Any, *names: str) -> bool:
    return any(bool(getattr(config, name, 0)) for name in names)


def _bytes(model: nn.Module, size: int) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * (size if t.is_floating_point() else t.element_size()) for t in tensors)
