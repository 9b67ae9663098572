"""Samplers: which point of a space the next trial of a task has. Optuna suggests; no point is suggested twice."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.config.search_settings import Objective
from orchestrator.plan.choosing import Point
from orchestrator.search.trial import Trial

DIRECTIONS: dict[Objective, Literal["maximize", "minimize"]] = {"accuracy": "maximize", "parameters": "minimize"}
_DRAWS = 100  # random points that are tried before the space is listed for one that is left
_ESTIMATES = 3  # suggestions of the estimator that are tried before random points
_MOST_DROPPED = 100  # suggestions that a study keeps, and each later one reads, before it is replaced
_MOST_LISTED = 100_000


class Space(Protocol):
    """What a sampler needs of a space."""

    def suggest(self, choose: Callable[[str, Sequence[Any]], Any], *, only_valid: bool = False) -> Point:
        """Return a point, calling ``choose(name, options)`` for each choice that applies.

        With ``only_valid`` the options are those with which the point can be valid, otherwise always the same.
        """

    def points(self) -> Iterator[Point]:
        """Yield all valid points."""


class Sampler:
    """Suggests the points of one task's trials.

    A suggestion depends on the seed, the number of the trial and the trials that were told, not on earlier calls: a
    search that was interrupted goes on as if it had not been, if its trials end one after another.

    Args:
        space: The space.
        method: ``tpe``: a tree-structured Parzen estimator, of several objectives if there are (Watanabe 2023;
            Ozaki et al. 2022). ``random``: uniform over the choices. ``grid``: the points in the order of the space.
        objectives: ``accuracy`` is maximized, ``parameters`` minimized.
        seed: Random seed.
        startup: Number of random trials before the estimator is used.
        key: Returns what makes two points the same trial, or None for a point that is not valid.
        first_ranks: Ranks that the first trials of the estimator have, one each; their other choices are random.
    """

    def __init__(
        self,
        space: Space,
        method: str,
        objectives: Sequence[Objective],
        seed: int,
        startup: int,
        key: Callable[[Point], str | None],
        first_ranks: Sequence[int] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._method, self._objectives, self._key = space, method, tuple(objectives), key
        self._seed, self._startup = seed, startup
        self._first_ranks = tuple(first_ranks) if method == "tpe" else ()
        self._told: list[optuna.trial.FrozenTrial] = []
        self._study, self._dropped = self._make_study(), 0
        self._taken: set[str] = set()
        self._grid = iter(space.points())

    def is_valid(self, point: Point) -> bool:
        """Return whether a point is one of the space."""
        return self._key(point) is not None

    def take(self, key: str) -> None:
        """Note that a trial with this key exists, so that no other is suggested."""
        self._taken.add(key)

    def tell(self, trial: Trial) -> None:
        """Learn from a trial that has ended; the point of another space teaches nothing."""
        if not trial.is_measured:
            return
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}

        def choose(name: str, options: Sequence[Any]) -> Any:
            index = list(options).index(trial.point[name])
            distributions[name] = _distribution(options)
            params[name] = index if _is_ordered(options) else options[index]
            return options[index]

        try:
            self._space.suggest(choose)
        except (KeyError, ValueError):
            return
        values = [float(getattr(trial, name)) for name in self._objectives]
        told = create_trial(params=params, distributions=distributions, values=values)
        self._told.append(told)
        self._study.add_trial(told)

    def suggest(self, number: int) -> Point | None:
        """Return the point of the trial of this number; None if every point has a trial."""
        if self._method == "grid":
            rest = (point for point in self._grid if self._is_left(point))
            return next((self._taking(point) for point in rest), None)
        draw = random.Random(f"{self._seed} {number}")
        rank = self._first_ranks[number - 1] if number <= len(self._first_ranks) else None
        attempts = range(_ESTIMATES if self._method == "tpe" and rank is None else 0)
        suggestions = (self._estimate(number, attempt) for attempt in attempts)

        def choose(name: str, options: Sequence[Any]) -> Any:
            is_given = name.startswith("rank") and rank in options  # each role may have its own
            return rank if is_given else draw.choice(list(options))

        drawn = (self._space.suggest(choose, only_valid=True) for _ in range(_DRAWS))
        for point in chain(suggestions, drawn):
            if self._is_left(point):
                return self._taking(point)
        left = [point for point in islice(self._space.points(), _MOST_LISTED) if self._is_left(point)]
        return self._taking(draw.choice(left)) if left else None

    def _estimate(self, number: int, attempt: int) -> Point:
        """Return what the estimator suggests, whether or not it was tried."""
        if self._dropped >= _MOST_DROPPED:
            self._study, self._dropped = self._make_study(), 0
        seed = random.Random(f"{self._seed} {number} {attempt}").getrandbits(32)
        with warnings.catch_warnings():  # these two options are years old, and still called experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self._startup, multivariate=True, group=True
            )
        trial = self._study.ask()

        def choose(name: str, options: Sequence[Any]) -> Any:
            if _is_ordered(options):
                return options[trial.suggest_int(name, 0, len(options) - 1)]
            return trial.suggest_categorical(name, list(options))

        point = self._space.suggest(choose)
        self._study.tell(trial, state=TrialState.FAIL)  # it counts when it is told with its results
        self._dropped += 1
        return point

    def _make_study(self) -> optuna.Study:
        """Return a study of the trials that were told."""
        directions = [DIRECTIONS[name] for name in self._objectives]
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), directions=directions)
        study.add_trials(self._told)
        return study

    def _is_left(self, point: Point) -> bool:
        key = self._key(point)
        return key is not None and key not in self._taken

    def _taking(self, point: Point) -> Point:
        self.take(str(self._key(point)))
        return point


def _is_ordered(options: Sequence[Any]) -> bool:
    """Return whether the options are numbers: the estimator then learns from the neighbours of an option too."""
    return all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in options)


def _distribution(options: Sequence[Any]) -> BaseDistribution:
    return IntDistribution(0, len(options) - 1) if _is_ordered(options) else CategoricalDistribution(list(options))
