"""Making the choices of a search space one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.plan.shape_choices import ShapeChoice

Point = dict[str, Any]
"""The option of every choice that applies, by the name of the choice; numbers and texts."""
Choose = Callable[[str, Sequence[Any]], Any]
"""Returns one of the options of the choice of this name, as ``trial.suggest_categorical`` of Optuna does."""


@dataclass
class Choosing:
    """Choices that are made one after another.

    Attributes:
        choose: Makes a choice.
        bound: Take only options that lead to at most so many parameters; None: any.
        offers_all: Offer the other options too, and take the nearest one that can be taken in their place.
        point: The choices so far.
        spent: Parameters of the shapes that are chosen.
    """

    choose: Choose
    bound: int | None = None
    offers_all: bool = True
    point: Point = field(default_factory=dict)
    spent: int = 0

    def pick(
        self, name: str, options: Sequence[Any], fewest: Callable[[Any], int], rest: Callable[[], int] = lambda: 0
    ) -> Any:
        """Make a choice.

        Args:
            name: Name of the choice.
            options: Its options.
            fewest: Returns the smallest number of parameters that an option adds to ``spent``.
            rest: Returns the smallest number that choices after it and what depends on it add.
        """
        possible = options
        if self.bound is not None:
            room = self.bound - self.spent - rest()
            possible = [option for option in options if fewest(option) <= room]
        chosen = self.choose(name, options if self.offers_all else possible)
        if chosen not in possible:
            place = options.index(chosen)
            chosen = min(possible, key=lambda option: abs(options.index(option) - place))
        self.point[name] = chosen
        return chosen


@dataclass
class Enumeration:
    """Makes the choices of one point after another, until every option was taken with all others.

    Attributes:
        is_not_done: Whether there is another point.
    """

    is_not_done: bool = True
    _path: list[tuple[int, int]] = field(default_factory=list)  # index and number of the options of each choice
    _depth: int = 0

    def choose(self, name: str, options: Sequence[Any]) -> Any:
        """Make the next choice of the present point."""
        if self._depth == len(self._path):
            self._path.append((0, len(options)))
        self._depth += 1
        return options[self._path[self._depth - 1][0]]

    def advance(self) -> None:
        """Go to the next point: another option of the last choice that has one."""
        self._depth = 0
        while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
            self._path.pop()
        self.is_not_done = bool(self._path)
        if self._path:
            index, number = self._path.pop()
            self._path.append((index + 1, number))


def choose_shape(
    choosing: Choosing, shape: ShapeChoice, later: Sequence[ShapeChoice]
) -> tuple[int, str, dict[str, str]]:
    """Choose the shape of some maps, before those of ``later`` ones.

    Returns:
        The rank, the numbers of factors, and the factors by the name of their choice: arguments of
        ``ShapeChoice.shape_of``.
    """

    def rest() -> int:
        return sum(each.fewest() for each in later)

    rank = choosing.pick(shape.rank_name, shape.ranks, shape.fewest, rest)
    pair = choosing.pick(shape.pair_name, shape.pairs, lambda pair: shape.fewest(rank, pair), rest)
    left, chosen = list(shape.factor_choices(pair)), {}

    def rest_of_pair() -> int:
        return sum(each.fewest(rank) for each in left) + rest()

    while left:
        choice = left.pop(0)
        sizes = choice.sizes(rank)
        option = choice.options[0]
        if shape.every:
            option = choosing.pick(choice.name, choice.options, sizes.__getitem__, rest_of_pair)
        choosing.spent += sizes[option]
        chosen[choice.name] = option
    return rank, pair, chosen
