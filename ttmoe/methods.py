"""Parametrisations of an update dW = B A: a tensor train, and plain low rank (LoRA).

Layers and banks use the ``Method`` protocol only: they store the cores that ``initial_cores`` returns and get A and B
from ``factors``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from ttmoe.errors import InputError
from ttmoe.initialisation import paper_cores, zero_start_cores
from ttmoe.shapes import TTShape, lora_parameters
from ttmoe.tensor_train import cores_to_factors

TensorTrainInit = Literal["zero", "paper"]


class Method(Protocol):
    """A parametrisation of the update of one linear map.

    Implementations are immutable, and two of them are equal if and only if their ``str`` is equal.
    """

    @property
    def name(self) -> str:
        """The method's name in ``AdapterSpec``: ``tt`` or ``lora``."""

    @property
    def in_features(self) -> int:
        """The input width."""

    @property
    def out_features(self) -> int:
        """The output width."""

    @property
    def rank(self) -> int:
        """The rank of the update: the number of rows of A and of columns of B."""

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each core of one layer, in the order of ``initial_cores`` and ``factors``."""

    @property
    def parameters(self) -> int:
        """The number of trainable parameters of one layer."""

    def scaling(self, alpha: float) -> float:
        """Return the number that the update is multiplied by."""

    def initial_cores(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Return initial cores for ``count`` layers.

        Args:
            count: Number of stacked layers.
            generator: Source of randomness; equal states give equal cores. None uses torch's global generator and the
                default device.

        Returns:
            Tensors (count, *core shape) in fp32 on the generator's device.
        """

    def factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return A (..., rank, in) and B (..., out, rank) of cores (..., *core shape), differentiably."""


@dataclass(frozen=True)
class TensorTrain:
    """An update whose factors are tensor trains (TT-LoRA, arXiv 2504.21190).

    Attributes:
        shape: Factors and rank of the train.
        init: Initial cores: ``zero`` for an update of zero (``zero_start_cores``), ``paper`` for the released code's
            (``paper_cores``).

    Raises:
        InputError: If ``init`` is neither.
    """

    shape: TTShape
    init: TensorTrainInit = "zero"
    name: ClassVar[str] = "tt"

    def __post_init__(self) -> None:
        if self.init not in get_args(TensorTrainInit):
            raise InputError(f"'{self.init}' is not an initialisation of tensor trains", fix="use 'zero' or 'paper'")

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
        """The middle bond, which is at most the shape's rank."""
        return self.shape.inner_rank

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(left bond, factor, right bond) of every core, input cores first."""
        return self.shape.core_shapes

    @property
    def parameters(self) -> int:
        """The number of trainable parameters of one layer."""
        return self.shape.parameters

    def scaling(self, alpha: float) -> float:
        """Return ``alpha`` itself, as in the paper."""
        return float(alpha)

    def initial_cores(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Return cores (count, left bond, factor, right bond), initialised according to ``init``."""
        if self.init == "paper":
            return paper_cores(self.shape.core_shapes, count, generator)
        return zero_start_cores(self.shape.core_shapes, self.shape.split, count, generator)

    def factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return A (..., rank, in) and B (..., out, rank) of cores (..., left bond, factor, right bond)."""
        return cores_to_factors(cores, self.shape.split)


@dataclass(frozen=True)
class LowRank:
    """LoRA (arXiv 2106.09685): the cores are A (rank, in) and B (out, rank) themselves.

    The rank may exceed the widths, so that imported adapters keep theirs.

    Raises:
        InputError: If a width or the rank is below 1.
    """

    in_features: int
    out_features: int
    rank: int
    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        if min(self.in_features, self.out_features, self.rank) < 1:
            raise InputError(f"{self} has a width or rank below 1", fix="use whole numbers of at least 1")

    def __str__(self) -> str:
        return f"lora:{self.in_features}x{self.out_features}@{self.rank}"

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(rank, in) for A and (out, rank) for B."""
        return (self.rank, self.in_features), (self.out_features, self.rank)

    @property
    def parameters(self) -> int:
        """The number of trainable parameters of one layer."""
        return lora_parameters(self.in_features, self.out_features, self.rank)

    def scaling(self, alpha: float) -> float:
        """Return ``alpha / rank`` (section 4.1 of the paper)."""
        return alpha / self.rank

    def initial_cores(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Return A, uniform within 1 / sqrt(in), and B, zero; as PEFT (Kaiming-uniform with a = sqrt 5)."""
        size = (count, self.rank, self.in_features)
        device = generator.device if generator else torch.get_default_device()
        a = torch.rand(size, generator=generator, device=device, dtype=torch.float32)
        b = torch.zeros((count, self.out_features, self.rank), device=device, dtype=torch.float32)
        return [(2 * a - 1) / math.sqrt(self.in_features), b]

    def factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the cores themselves: A (..., rank, in) and B (..., out, rank)."""
        a, b = cores
        return a, b
