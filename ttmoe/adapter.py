"""The adapter of one expert: its specification, its groups of sites, and its trained cores.

A site is one adapted linear map of the base, its role is its function in a layer (q, v, up, ...), and a core is a
trained tensor of the update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ttmoe.errors import InputError
from ttmoe.methods import LowRank, Method, TensorTrain, TensorTrainInit
from ttmoe.shapes import TTShape, auto_shape, lora_parameters
from ttmoe.targets import Site, find_sites

METHODS = ("tt", "lora")


@dataclass(frozen=True)
class AdapterSpec:
    """The settings of an adapter.

    Attributes:
        method: ``tt`` (tensor train) or ``lora``.
        targets: Roles, or regular expressions on paths inside a layer (see ``find_sites``).
        first_layer: Index of the first adapted layer, from 0. The layers below it form the trunk.
        last_layer: Index of the last adapted layer, inclusive; None for the base's last layer.
        rank: Rank r of the update B A: the middle bond of a tensor train, or LoRA's r.
        alpha: Scale of the update: multiplied by alpha for ``tt``, by alpha / rank for ``lora``.
        shape: Factors of the widths for ``tt``, input before output, as in ``16x24|12x8`` for 384 to 96 features;
            ``auto``; or a mapping from target to one of these.
        init: Initialisation for ``tt``: ``zero`` starts with a zero update, ``paper`` as in arXiv 2504.21190.
        dropout: Dropout rate on the input of the update, from 0 to below 1.

    Raises:
        InputError: If ``method``, ``targets``, ``alpha`` or ``dropout`` is invalid.
    """

    method: str = "tt"
    targets: tuple[str, ...] = ("q", "v")
    first_layer: int = 0
    last_layer: int | None = None
    rank: int = 8
    alpha: float = 8.0
    shape: str | Mapping[str, str] = "auto"
    init: str = "zero"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        rules = (("method", self.method in METHODS, "use tt or lora"),
                 ("targets", bool(self.targets), "give one role or more"),
                 ("alpha", _is_number(self.alpha) and math.isfinite(self.alpha), "use a finite number"),
                 ("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1,
                  "use a number from 0 to below 1"))  # fmt: skip
        for name, valid, fix in rules:
            if not valid:
                raise InputError(f"{name} cannot be {getattr(self, name)!r}", where=f"adapter.{name}", fix=fix)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Group:
    """The sites with the same role and widths. Their cores are stacked, and their matrices A and B are built together.

    Attributes:
        role: Role of the sites.
        method: Parametrisation of each site's update.
        sites: The sites, one for each layer.
    """

    role: str
    method: Method
    sites: tuple[Site, ...] = field(compare=False)

    @property
    def key(self) -> str:
        """The group's name in the state dict, without dots. Expert files contain it."""
        return f"{self.role}_{self.method.in_features}x{self.method.out_features}".replace(".", "-")


def plan_groups(model: nn.Module, spec: AdapterSpec) -> list[Group]:
    """Return the groups that an adapter of ``spec`` has on this model, which may be on the meta device.

    Raises:
        InputError: If a target matches nothing, the layer range is not in the model, or the factors of a shape do not
            multiply to the widths of its sites.
    """
    sites_of: dict[tuple[str, int, int], list[Site]] = {}
    for site in find_sites(model, spec.targets, spec.first_layer, spec.last_layer):
        sites_of.setdefault((site.role, site.in_features, site.out_features), []).append(site)
    return [Group(role, _method(spec, role, i, o), tuple(sites)) for (role, i, o), sites in sites_of.items()]


def _method(spec: AdapterSpec, role: str, in_features: int, out_features: int) -> Method:
    if spec.method == "lora":
        return LowRank(in_features, out_features, spec.rank)
    init = cast(TensorTrainInit, spec.init)  # TensorTrain validates it
    text = spec.shape if isinstance(spec.shape, str) else spec.shape.get(role, "auto")
    if text == "auto":
        return TensorTrain(auto_shape(in_features, out_features, spec.rank), init)
    shape = TTShape.parse(text if "@" in text else f"{text}@{spec.rank}")
    if (shape.in_features, shape.out_features) != (in_features, out_features):
        fitting = auto_shape(in_features, out_features, spec.rank)
        raise InputError(f"shape {text} is for {shape.in_features} to {shape.out_features} features, "
                         f"but {role!r} maps {in_features} to {out_features}",
                         where="adapter.shape", fix=f"a shape that fits: {str(fitting).split('@')[0]}")  # fmt: skip
    return TensorTrain(shape, init)


def count_parameters(groups: list[Group]) -> int:
    """Return the number of trainable parameters of the adapter, without the head."""
    return sum(group.method.parameters * len(group.sites) for group in groups)


def count_lora_parameters(groups: list[Group], rank: int = 16) -> int:
    """Return the number of parameters of plain LoRA of ``rank`` on the same sites, as a reference."""
    return sum(lora_parameters(s.in_features, s.out_features, rank) for group in groups for s in group.sites)


class Adapter(nn.Module):
    """The trainable cores of one expert, in fp32, stacked over the sites of each group.

    Args:
        groups: The groups, from ``plan_groups``.
        spec: The specification that the groups were planned from.
        generator: Source of the initial cores; None leaves them uninitialised, for weights to be loaded.

    Attributes:
        lowest_layer: Index of the lowest adapted layer: the largest depth of a trunk below this adapter.
    """

    def __init__(self, groups: list[Group], spec: AdapterSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.groups, self.spec = groups, spec
        self.lowest_layer = min(site.layer for group in groups for site in group.sites)
        self.cores = nn.ModuleDict({g.key: nn.ParameterList(_initial_cores(g, generator)) for g in groups})
        self._cache: dict[torch.dtype, tuple[list[tuple[Tensor, int]], list[tuple[Tensor, Tensor]]]] = {}

    def factors(self, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
        """Return A (sites, r, in) and B (sites, out, r) of each group, built in fp32, with the scaling applied to B.

        While any core requires gradients, the factors are built in every call, because an optimizer may change cores
        without raising their version counter (fused optimizers and DeepSpeed do). For a frozen expert they are cached
        until a core changes.
        """
        if any(p.requires_grad for p in self.parameters()):
            return self._build_factors(dtype)
        if dtype not in self._cache or not self._is_current(self._cache[dtype][0]):
            with torch.inference_mode(False), torch.no_grad():
                # Holding the tensors keeps their memory from being reused, so equal addresses mean the same tensor.
                state = [(p.detach(), p._version) for p in self.parameters()]
                self._cache[dtype] = state, self._build_factors(dtype)
        return self._cache[dtype][1]

    def cores_of(self, group: Group) -> list[nn.Parameter]:
        """Return the cores of a group, each (sites, left bond, n, right bond)."""
        return list(cast(nn.ParameterList, self.cores[group.key]))

    def _is_current(self, state: list[tuple[Tensor, int]]) -> bool:
        return all(p.data_ptr() == cached.data_ptr() and p.device == cached.device and p._version == version
                   for p, (cached, version) in zip(self.parameters(), state, strict=True))  # fmt: skip

    def _build_factors(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        factors = []
        for group in self.groups:
            cores = self.cores_of(group)
            with torch.autocast(cores[0].device.type, enabled=False):
                a, b = group.method.factors(cores)
                factors.append((a.to(dtype), (b * group.method.scaling(self.spec.alpha)).to(dtype)))
        return factors


def _initial_cores(group: Group, generator: torch.Generator | None) -> list[Tensor]:
    count = len(group.sites)
    if generator is None:
        return [torch.empty(count, *shape) for shape in group.method.core_shapes]
    return group.method.initial_cores(count, generator)
