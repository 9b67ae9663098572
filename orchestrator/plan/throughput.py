"""Training times from a stated throughput, for nodes on which nothing was trained yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.plan.expert_plan import ExpertPlan
from orchestrator.plan.trunk_forecast import count_tokens
from orchestrator.pool.capacity import Node
from ttmoe.architectures import layer_list

if TYPE_CHECKING:
    from torch import nn


def stated_throughput(nodes: Sequence[Node]) -> float:
    """Return the operations per second of the slowest GPU for which a throughput is stated; 0 if none is."""
    return 1e12 * min((node.tflops for node in nodes if node.tflops), default=0.0)


def seconds_at(expert: ExpertPlan, model: nn.Module, throughput: float) -> float:
    """Return the seconds of an expert's training, its evaluations and its test.

    A token takes two operations for each weight of a layer in a forward pass, and as many in a backward pass, which has
    no gradients of frozen weights (Kaplan et al., arXiv 2001.08361, section 2.1); recomputed layers take a forward pass
    more. Attention weights, which depend on the length, and what the adapters add are left out.

    Args:
        expert: Plan of the expert.
        model: Body of the base; its modules may be on the meta device.
        throughput: Operations per second.
    """
    job, layers = expert.job, layer_list(model)
    train, data, length = job.train, job.data, job.base.max_length
    whole, adapted = (2 * sum(p.numel() for layer in part for p in layer.parameters())
                      for part in (layers, layers[job.adapter.first_layer :]))  # fmt: skip
    tokens, sequences = count_tokens(data, length, ("train",))
    rows = sequences // job.options
    step_tokens = train.batch_rows(rows, tokens) * tokens / rows
    operations = train.steps * step_tokens * (whole + adapted * (2 if train.recomputes else 1))
    evaluated = {split: count_tokens(data, length, (split,))[0] for split in ("validation", "test")}
    share = train.evaluation_rows(data.rows["validation"]) / data.rows["validation"]
    evaluations = share * (train.steps // train.eval_every) + 1  # the last one on all rows
    operations += whole * (evaluated["validation"] * evaluations + evaluated["test"])
    return operations / throughput
