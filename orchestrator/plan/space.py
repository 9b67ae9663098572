"""The space of a search: the points that its trials may have on the layers of one base."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

from torch import nn

from orchestrator.config.search_settings import SearchSettings, SpaceSettings
from orchestrator.plan.choosing import Choose, Choosing, Enumeration, Point, choose_shape
from orchestrator.plan.planning import Plan
from orchestrator.plan.site_choices import Sites, plan_sites
from ttmoe.adapter import AdapterSpec, Group, count_parameters
from ttmoe.base import empty_body
from ttmoe.errors import InputError
from ttmoe.methods import TensorTrain, TensorTrainInit
from ttmoe.shapes import TTShape
from workers.training.learning_rate import lr_for_rank
from workers.training.settings import TrainSettings

_DRAWS = 20  # random points for each point of a sample, before fewer are returned


@dataclass(frozen=True)
class PointSettings:
    """What a point trains.

    Attributes:
        adapter: The adapter.
        train: The training settings.
        head: ``trained`` or ``frozen``.
        groups: The groups of the adapter, equal to those that ``plan_groups`` returns.
        parameters: Number of parameters of the adapter, without the head.
    """

    adapter: AdapterSpec
    train: TrainSettings
    head: str
    groups: list[Group]
    parameters: int


class SearchSpace:
    """The points of a search on one task. No two of its points train the same.

    Args:
        model: Body of the base; its modules may be on the meta device.
        adapter: Adapter of the task, for what the search does not choose. ``train.lr`` counts as that of its rank.
        train: Training settings of a trial.
        head: Head of the task: ``trained`` or ``frozen``.
        search: The search settings.

    Raises:
        InputError: If an option does not fit the base, or no point has at most ``search.max_parameters``.
    """

    def __init__(
        self, model: nn.Module, adapter: AdapterSpec, train: TrainSettings, head: str, search: SearchSettings
    ) -> None:
        self._adapter, self._train, self._head, self._search = adapter, train, head, search
        settings = search.space or SpaceSettings(lr="keep")
        self._falling_lr = settings.lr == "auto"
        self._sites = {(sites.targets, sites.layers): sites for sites in plan_sites(model, adapter, search, settings)}
        lists = {"alpha": settings.alpha, "lr": settings.lr, "head": settings.head}
        self._others = {
            name: tuple(dict.fromkeys(options)) for name, options in lists.items() if isinstance(options, tuple)
        }
        if (most := search.max_parameters) and (fewest := min(s.fewest for s in self._sites.values())) > most:
            what = f"no point has at most {most:,} parameters; the smallest has {fewest:,}"
            raise InputError(what, where="search.max_parameters", fix="raise it, or allow lower ranks or more cores")

    def suggest(self, choose: Choose, *, only_valid: bool = False) -> Point:
        """Return a valid point, calling ``choose(name, options)`` for each choice that applies.

        Args:
            choose: Makes the choices.
            only_valid: Offer only options with which the point has at most ``search.max_parameters``; they then depend
                on earlier choices. Otherwise the options of a choice are always the same, and the point has the nearest
                possible one in place of one with which it would have more.
        """
        choosing = Choosing(choose, self._search.max_parameters, offers_all=not only_valid)
        self._choose(choosing)
        return choosing.point

    def is_valid(self, point: Point) -> bool:
        """Return whether a point is one of this space: exactly its choices, and not too many parameters."""
        most = self._search.max_parameters
        try:
            return point == self._repeat(point)[0] and (most is None or self.settings(point).parameters <= most)
        except (KeyError, ValueError):
            return False

    def settings(self, point: Point) -> PointSettings:
        """Return what a point trains.

        Raises:
            KeyError: If a choice is missing.
            ValueError: If it has another option.
        """
        point, sites, shapes = self._repeat(point)
        init = cast(TensorTrainInit, self._adapter.init)
        groups = [Group(group.role, TensorTrain(shapes[group.role], init), group.sites) for group in sites.groups]
        rank = max(shape.rank for shape in shapes.values())
        texts = {role: str(shape).removesuffix(f"@{rank}") for role, shape in shapes.items()}
        lr = lr_for_rank(self._train.lr, self._adapter.rank, rank) if self._falling_lr else self._train.lr
        return PointSettings(
            replace(sites.adapter, rank=rank, shape=texts, alpha=point.get("alpha", self._adapter.alpha)),
            self._train.model_copy(update={"lr": point.get("lr", lr)}),
            point.get("head", self._head),
            groups,
            count_parameters(groups),
        )

    def points(self) -> Iterator[Point]:
        """Yield every valid point once."""
        every = Enumeration()
        while every.is_not_done:
            yield self.suggest(every.choose, only_valid=True)
            every.advance()

    def size(self, limit: int = 1_000_000) -> int:
        """Return the number of valid points, counted up to ``limit``."""
        total, each = 0, prod(map(len, self._others.values()))
        for sites in self._sites.values():
            total += sites.count(self._search.max_parameters, limit - total) * each
            if total >= limit:
                return limit
        return total

    def sample(self, seed: int, number: int) -> list[Point]:
        """Return ``number`` different valid points at random, or all if there are fewer."""
        draw, draws = random.Random(seed), _DRAWS * number
        if self.size(draws) < draws:
            points = list(self.points())
            return draw.sample(points, min(number, len(points)))
        found: dict[str, Point] = {}
        for _ in range(draws):
            point = self.suggest(lambda _, options: draw.choice(options), only_valid=True)
            found.setdefault(str(point), point)
        return list(found.values())[:number]

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Return the options of every choice by its name. Some choices apply to a part of the points only."""
        found: dict[str, tuple[Any, ...]] = {name: self._options_of(name) for name in ("targets", "layers")}
        for shape in (shape for sites in self._sites.values() for shape in sites.shapes):
            found |= {shape.rank_name: shape.ranks, shape.pair_name: shape.pairs}
            if shape.every:
                found |= {each.name: each.options for pair in shape.pairs for each in shape.factor_choices(pair)}
        return {name: options for name, options in (found | self._others).items() if any(options)}

    def largest_adapters(self) -> list[AdapterSpec]:
        """Return the adapter of the largest rank for each option of targets and layers, to estimate memory."""
        return [replace(sites.adapter, rank=max(self._search.ranks)) for sites in self._sites.values()]

    def _options_of(self, name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(getattr(sites, name) for sites in self._sites.values()))

    def _repeat(self, point: Point) -> tuple[Point, Sites, dict[str, TTShape]]:
        choosing = Choosing(lambda name, options: options[options.index(point[name])])
        sites, chosen = self._choose(choosing)
        pairs = list(zip(sites.shapes, chosen, strict=True))
        return choosing.point, sites, {g.role: shape.shape_of(g, *args) for shape, args in pairs for g in shape.groups}

    def _choose(self, choosing: Choosing) -> tuple[Sites, list[tuple[int, str, dict[str, str]]]]:
        """Make all choices; return the adapted maps, and what ``choose_shape`` returns for each of their shapes."""
        sites = self._choose_sites(choosing)
        chosen = [choose_shape(choosing, each, sites.shapes[i + 1 :]) for i, each in enumerate(sites.shapes)]
        for name, options in self._others.items():
            choosing.pick(name, options, lambda _: 0)
        return sites, chosen

    def _choose_sites(self, choosing: Choosing) -> Sites:
        left = list(self._sites.values())
        for name in ("targets", "layers"):
            if any(options := self._options_of(name)):
                of = {option: [sites for sites in left if getattr(sites, name) == option] for option in options}
                left = of[choosing.pick(name, options, lambda option: min(s.fewest for s in of[option]))]  # noqa: B023
        return left[0]


def plan_space(plan: Plan, task: str, model: nn.Module | None = None) -> SearchSpace:
    """Return the space of the search on one of the plan's searched tasks.

    Args:
        plan: The plan; its config has a search.
        task: Name of the task.
        model: Body of the base, on any device; None: it is made on the meta device.

    Raises:
        InputError: If an option does not fit the base, or the space is empty.
        ValueError: If the config has no search.
    """
    if (search := plan.config.search) is None:
        raise ValueError("the config has no search")
    job, train = plan.experts[task].job, plan.config.search_train(task)
    return SearchSpace(model or empty_body(plan.base), job.adapter, train, job.head, search)
