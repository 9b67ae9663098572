"""An adapter: trained cores on chosen sites of the base, and the factors that the layers ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ttmoe.errors import InputError
from ttmoe.methods import LowRank, Method, Start, TensorTrain
from ttmoe.shapes import TTShape, auto_shape, lora_parameters
from ttmoe.targets import Site, find_sites

METHODS = ("tt", "lora")


@dataclass(frozen=True)
class AdapterSpec:
    """What decides an adapter's form.

    ``shape`` is ``auto``, factors such as ``16x24|24x16``, or one of these for each target. ``first_layer`` is the
    depth of the trunk: layers below it are shared and untouched. ``last_layer`` is inclusive; None is the top.
    Raises InputError for a method that does not exist, no targets, or an alpha or dropout that is no such number.
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
        rules = (("method", self.method in METHODS, "tt or lora"), ("targets", bool(self.targets), "one role or more"),
                 ("alpha", _is_number(self.alpha) and math.isfinite(self.alpha), "a finite number"),
                 ("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "from 0 to below 1"))  # fmt: skip
        for name, holds, fix in rules:
            if not holds:
                raise InputError(f"{name} cannot be {getattr(self, name)!r}", where=f"adapter.{name}", fix=fix)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Group:
    """The sites that share one role and size: their cores are stacked over ``sites`` and built into factors at once."""

    role: str
    method: Method
    sites: tuple[Site, ...] = field(compare=False)

    @property
    def key(self) -> str:
        """A name that a parameter may carry (no dots)."""
        return f"{self.role}_{self.method.in_features}x{self.method.out_features}".replace(".", "-")


def plan_groups(model: nn.Module, spec: AdapterSpec) -> list[Group]:
    """The adapter's groups on this model (which may be on the meta device).

    Raises InputError for an unknown target, an empty layer range, or factors that do not multiply to a width.
    """
    bundles: dict[tuple[str, int, int], list[Site]] = {}
    for site in find_sites(model, spec.targets, spec.first_layer, spec.last_layer):
        bundles.setdefault((site.role, site.in_features, site.out_features), []).append(site)
    return [Group(role, _method(spec, role, i, o), tuple(sites)) for (role, i, o), sites in bundles.items()]


def _method(spec: AdapterSpec, role: str, in_features: int, out_features: int) -> Method:
    if spec.method == "lora":
        return LowRank(in_features, out_features, spec.rank)
    init = cast(Start, spec.init)  # checked there
    text = spec.shape if isinstance(spec.shape, str) else spec.shape.get(role, "auto")
    if text == "auto":
        return TensorTrain(auto_shape(in_features, out_features, spec.rank), init)
    shape = TTShape.parse(text if "@" in text else f"{text}@{spec.rank}")
    if (shape.in_features, shape.out_features) != (in_features, out_features):
        nearest = auto_shape(in_features, out_features, spec.rank)
        raise InputError(f"shape {text} is for {shape.in_features} to {shape.out_features} features, "
                         f"but {role!r} maps {in_features} to {out_features}",
                         where="adapter.shape", fix=f"a shape that fits: {str(nearest).split('@')[0]}")  # fmt: skip
    return TensorTrain(shape, init)


def count_parameters(groups: list[Group]) -> int:
    """Trainable parameters of the adapter, the head not counted."""
    return sum(group.method.parameters * len(group.sites) for group in groups)


def count_lora(groups: list[Group], rank: int = 16) -> int:
    """Parameters that plain LoRA of ``rank`` would have on the same sites."""
    return sum(lora_parameters(s.in_features, s.out_features, rank) for group in groups for s in group.sites)


class Adapter(nn.Module):
    """The trainable cores of one expert, fp32, stacked over the layers of each group.

    Drawn from ``generator``; without one they are left unset, for weights to be loaded into.
    """

    def __init__(self, groups: list[Group], spec: AdapterSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.groups, self.spec = groups, spec
        self.cores = nn.ModuleDict({g.key: nn.ParameterList(_start(g, generator)) for g in groups})
        self._built: tuple[list[tuple[Tensor, int]], list[tuple[Tensor, Tensor]]] | None = None

    @property
    def lowest(self) -> int:
        """The lowest layer that it acts on: a trunk may end there."""
        return min(site.layer for group in self.groups for site in group.sites)

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """For each group A (sites, r, in) and B (sites, out, r), fp32, the scale already in B.

        Built anew while any core is trained, for an optimizer may change it without a trace (fused ones and DeepSpeed
        do); for a frozen expert once for each state of the cores, and kept.
        """
        if any(p.requires_grad for p in self.parameters()):
            return self._build()
        if self._built is None or not self._unchanged(self._built[0]):
            with torch.inference_mode(False), torch.no_grad():
                # The tensors are held so that no other can come to lie at their address.
                self._built = ([(p.detach(), p._version) for p in self.parameters()], self._build())
        return self._built[1]

    def _unchanged(self, state: list[tuple[Tensor, int]]) -> bool:
        return all(p.data_ptr() == kept.data_ptr() and p.device == kept.device and p._version == version
                   for p, (kept, version) in zip(self.parameters(), state, strict=True))  # fmt: skip

    def _build(self) -> list[tuple[Tensor, Tensor]]:
        built = []
        for group in self.groups:
            cores = list(cast(nn.ParameterList, self.cores[group.key]))
            with torch.autocast(cores[0].device.type, enabled=False):
                a, b = group.method.factors(cores)
                built.append((a, b * group.method.scaling(self.spec.alpha)))
        return built


def _start(group: Group, generator: torch.Generator | None) -> list[Tensor]:
    count = len(group.sites)
    if generator is None:
        return [torch.empty(count, *shape) for shape in group.method.core_shapes]
    return group.method.initial(count, generator)
