"""The ranks of a task's own adapter, as a space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from orchestrator.plan.choosing import Point
from orchestrator.plan.planning import Plan
from orchestrator.plan.space import PointSettings
from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.errors import InputError
from workers.training.learning_rate import lr_for_rank
from workers.training.settings import TrainSettings


class RankSpace:
    """The points ``{"rank": r}``: the shapes, layers and everything else are those of the task's adapter.

    Args:
        model: Body of the base; its modules may be on the meta device.
        adapter: Adapter of the task; ``train.lr`` is the learning rate for its rank, see ``lr_for_rank``.
        train: Training settings.
        head: Head of the task.
        ranks: The ranks.
        keeps_lr: Whether every rank has the same learning rate.
        most: Largest number of parameters of a point; None for any. The highest rank may have more: it is trained to be
            cut.

    Raises:
        InputError: If no rank has at most ``most`` parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: AdapterSpec,
        train: TrainSettings,
        head: str,
        ranks: Sequence[int],
        *,
        keeps_lr: bool = False,
        most: int | None = None,
    ) -> None:
        self._model, self._adapter, self._train, self._head = model, adapter, train, head
        self._keeps_lr = keeps_lr
        # A rank above the largest that the factors allow is that one: the lowest of those with equal shapes stands.
        sizes = {self._settings(rank).parameters: rank for rank in sorted(set(ranks), reverse=True)}
        parameters = {rank: count for count, rank in sorted(sizes.items())}
        fitting = [rank for rank, count in parameters.items() if most is None or count <= most]
        if not fitting:
            fewest = min(parameters.values())
            what = f"no rank has at most {most:,} parameters; the lowest has {fewest:,}"
            raise InputError(what, where="search.max_parameters", fix="raise it, or allow lower ranks")
        self._ranks = tuple(sorted({*fitting, max(parameters)}))

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Return the options of every choice by its name."""
        return {"rank": self._ranks}

    def size(self, limit: int) -> int:
        """Return the number of points, counted up to ``limit``."""
        return min(limit, len(self._ranks))

    def sample(self, seed: int, count: int) -> list[Point]:
        """Return the first ``count`` points."""
        return [{"rank": rank} for rank in self._ranks[:count]]

    def is_valid(self, point: Point) -> bool:
        """Return whether a point is one of this space."""
        return point.get("rank") in self._ranks

    def settings(self, point: Point) -> PointSettings:
        """Return what a point trains."""
        return self._settings(point["rank"])

    def _settings(self, rank: int) -> PointSettings:
        shape = self._adapter.shape
        factors = shape.split("@")[0] if isinstance(shape, str) else {k: v.split("@")[0] for k, v in shape.items()}
        adapter = replace(self._adapter, method="tt", rank=rank, shape=factors)
        lr = self._train.lr if self._keeps_lr else lr_for_rank(self._train.lr, self._adapter.rank, rank)
        groups = plan_groups(self._model, adapter)
        train = self._train.model_copy(update={"lr": lr})
        return PointSettings(adapter, train, self._head, groups, count_parameters(groups))


def rank_space(plan: Plan, task: str, model: nn.Module) -> RankSpace:
    """Return the ranks of one of the plan's searched tasks.

    Args:
        plan: The plan; its config has a search.
        task: Name of the task.
        model: Body of the base; its modules may be on the meta device.

    Raises:
        InputError: If no rank has at most ``search.max_parameters``.
    """
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    job, keeps_lr = plan.experts[task].job, search.space is not None and search.space.lr == "keep"
    train = plan.config.search_train(task)
    return RankSpace(model, job.adapter, train, job.head, search.ranks, keeps_lr=keeps_lr, most=search.max_parameters)
