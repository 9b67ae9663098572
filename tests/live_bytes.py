"""Peak memory of a training step by the live tensors of every operation, on fake tensors: an independent count.

Fake tensors have sizes and no values, so a step of an 8B model runs in seconds and takes no memory. What is counted is
what the operations of torch make and what is still referenced, and not what ``workers.training.memory`` says.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModel

from ttmoe.bank import Bank
from ttmoe.encoding import Item
from ttmoe.expert import Expert
from workers.expert_job import ExpertJob
from workers.training.batches import TokenizedRows
from workers.training.gradients import ExpertBatch, activation_checkpointing, batch_losses


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@dataclass
class StepBytes:
    """Bytes of the weights of a base, and at the peak of a training step."""

    weights: int
    peak: int = field(default=0)


def bytes_of_a_step(job: ExpertJob, config: dict[str, Any], experts: int = 1) -> StepBytes:
    """Train a second step of these experts together on fake tensors, all rows of the longest length.

    Attention is the fused one, as on a GPU.

    Args:
        job: A job of the experts; ``micro_batch`` and ``checkpointing`` are resolved.
        config: Keys of the base's config.
        experts: Number of experts.
    """
    length, train = job.base.max_length, job.train
    rows_of_each = -(-(train.rows_at_once or train.batch_size * experts) // experts)
    item = Item({"input_ids": [1] * length, "attention_mask": [1] * length})
    rows = TokenizedRows([item] * rows_of_each, [0] * rows_of_each)
    names = [f"expert {number}" for number in range(experts)]
    settings = AutoConfig.for_model(**config)
    # Moving a module swaps its parameters, which fake tensors do not allow; everything is on one device.
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        patch.setattr(Expert, "_apply", lambda self, fn, recurse=True: self)
        dtype = getattr(torch, job.base.dtype)
        model = AutoModel.from_config(settings, dtype=dtype, attn_implementation="sdpa").eval().requires_grad_(False)
        model.config.use_cache = False
        found, bank = StepBytes(sum(p.numel() * p.element_size() for p in model.parameters())), Bank(model, "last")
        for name in names:
            bank.add(name, job.adapter, job.classes, torch.Generator())
        optimizer = torch.optim.AdamW([p for name in names for p in bank.expert(name).parameters()])
        bank.train()
        with activation_checkpointing(bank.model, train.recomputes):
            for step in range(2):  # the first one makes the optimizer's moments
                live.peak = live.now
                batches = [ExpertBatch(name, rows, list(range(rows_of_each)), 0.0, 1, step) for name in names]
                together = {index: list(range(rows_of_each)) for index in range(experts)}
                losses = batch_losses(bank, batches, together, 0, job.adapter.first_layer)
                sum(losses.values()).backward()  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()
        found.peak = live.peak
    return found
