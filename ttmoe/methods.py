"""The parametrisations of an update dW = B A: a tensor train, and plain low rank (LoRA).

A layer or bank knows neither: it stores the cores that ``initial`` gives and asks ``factors`` for A and B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from ttmoe.errors import InputError
from ttmoe.initialisation import paper_cores, zero_start_cores
from ttmoe.shapes import TTShape, lora_parameters
from ttmoe.tensor_train import factors

Start = Literal["zero", "paper"]

_LOW_RANK = re.compile(r"lora:(\d+)x(\d+)@(\d+)")
_TENSOR_TRAIN = re.compile(r"tt:([^/]*)(?:/(\w+))?")


class Method(Protocol):
    """What a layer needs to know of a parametrisation: a value, equal where its text is equal."""

    @property
    def name(self) -> str:
        """``tt`` or ``lora``."""

    @property
    def in_features(self) -> int:
        """The input width."""

    @property
    def out_features(self) -> int:
        """The output width."""

    @property
    def rank(self) -> int:
        """The number of rows of A and columns of B."""

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each trained tensor of one layer, in the order of ``initial`` and ``factors``."""

    @property
    def parameters(self) -> int:
        """The number of trained values of one layer."""

    def scaling(self, alpha: float) -> float:
        """The number the update is multiplied by."""

    def initial(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Fresh fp32 cores (count, *core shape) for ``count`` layers, on the generator's device.

        Determined by the generator's state; without one, from torch's global generator on the default device.
        """

    def factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A (..., rank, in) and B (..., out, rank) from cores (..., *core shape), differentiable."""


@dataclass(frozen=True)
class TensorTrain:
    """An update whose factors are tensor trains (TT-LoRA, arXiv 2504.21190).

    ``init`` is how cores start: ``zero`` leaves the base model as it is (``zero_start_cores``), ``paper``
    does as the released code. Raises ``InputError`` for another ``init``.
    """

    shape: TTShape
    init: Start = "zero"
    name: ClassVar[str] = "tt"

    def __post_init__(self) -> None:
        if self.init not in get_args(Start):
            raise InputError(f"'{self.init}' is not a start of tensor trains", fix="use 'zero' or 'paper'")

    def __str__(self) -> str:
        return f"tt:{self.shape}" + ("" if self.init == "zero" else f"/{self.init}")

    @property
    def in_features(self) -> int:
        """The input width."""
        return self.shape.in_features

    @property
    def out_features(self) -> int:
        """The output width."""
        return self.shape.out_features

    @property
    def rank(self) -> int:
        """The middle bond: the rank of the update, not more than the shape's rank."""
        return self.shape.inner_rank

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(left bond, factor, right bond) of every core, input cores first."""
        return self.shape.core_shapes

    @property
    def parameters(self) -> int:
        """The number of trained values of one layer."""
        return self.shape.parameters

    def scaling(self, alpha: float) -> float:
        """``alpha`` itself: the paper's bare multiplier."""
        return float(alpha)

    def initial(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Fresh fp32 cores (count, left, factor, right), on the generator's device."""
        if self.init == "paper":
            return paper_cores(self.shape.core_shapes, count, generator)
        return zero_start_cores(self.shape.core_shapes, self.shape.split, count, generator)

    def factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A (..., rank, in) and B (..., out, rank) from cores (..., left, factor, right)."""
        return factors(cores, self.shape.split)


@dataclass(frozen=True)
class LowRank:
    """LoRA (arXiv 2106.09685): the cores are A (rank, in) and B (out, rank) themselves.

    Raises ``InputError`` for a width or rank below 1. The rank is not capped: an adapter from elsewhere keeps
    its own.
    """

    in_features: int
    out_features: int
    rank: int
    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        if min(self.in_features, self.out_features, self.rank) < 1:
            raise InputError(f"{self} has a width or rank below 1", fix="give whole numbers from 1 up")

    def __str__(self) -> str:
        return f"lora:{self.in_features}x{self.out_features}@{self.rank}"

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(rank, in) and (out, rank)."""
        return (self.rank, self.in_features), (self.out_features, self.rank)

    @property
    def parameters(self) -> int:
        """The number of trained values of one layer."""
        return lora_parameters(self.in_features, self.out_features, self.rank)

    def scaling(self, alpha: float) -> float:
        """``alpha / rank`` (section 4.1 of the paper)."""
        return alpha / self.rank

    def initial(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """A Kaiming-uniform with a = sqrt 5 as in PEFT, which is uniform within 1 / sqrt(in); B zero."""
        size = (count, self.rank, self.in_features)
        device = generator.device if generator else torch.get_default_device()
        a = torch.rand(size, generator=generator, device=device, dtype=torch.float32)
        b = torch.zeros((count, self.out_features, self.rank), device=device, dtype=torch.float32)
        return [(2 * a - 1) / math.sqrt(self.in_features), b]

    def factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The cores: A (..., rank, in) and B (..., out, rank)."""
        a, b = cores
        return a, b


def parse_method(text: str) -> Method:
    """Read what ``str`` of a method writes: ``tt:16x8|8x16@5``, ``tt:...@5/paper`` or ``lora:576x192@16``.

    Raises ``InputError`` for any other text.
    """
    if low_rank := _LOW_RANK.fullmatch(text):
        return LowRank(*map(int, low_rank.groups()))
    if tensor_train := _TENSOR_TRAIN.fullmatch(text):
        shape, init = tensor_train.groups(default="zero")
        return TensorTrain(TTShape.parse(shape), init)  # type: ignore[arg-type]  # checked there
    raise InputError(f"'{text}' is not a method", fix="write 'tt:16x8|8x16@5' or 'lora:576x192@16'")
