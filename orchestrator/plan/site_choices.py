"""The choices of adapted maps: which roles, in which layers; and the choices of rank and shape that each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from orchestrator.config.search_settings import SearchSettings, SpaceSettings
from orchestrator.config.sections import layer_ends
from orchestrator.plan.shape_choices import ShapeChoice, bounded_sums, different_ranks, fitting_pairs
from ttmoe.adapter import AdapterSpec, Group, plan_groups
from ttmoe.errors import InputError
from ttmoe.targets import layer_list


@dataclass(frozen=True)
class Sites:
    """The adapted maps of one option of targets and layers.

    Attributes:
        targets: The option of ``search.space.targets`` as text, such as ``q,v``.
        layers: The option of ``search.space.layers``.
        adapter: The adapter on these maps. Its rank and shape are to be chosen.
        groups: The groups of maps.
        shapes: The choices of rank and shape: one for all groups, or one for each.
    """

    targets: str
    layers: str
    adapter: AdapterSpec
    groups: tuple[Group, ...]
    shapes: tuple[ShapeChoice, ...]

    @property
    def fewest(self) -> int:
        """The smallest number of parameters."""
        return sum(shape.fewest() for shape in self.shapes)

    def count(self, bound: int | None, limit: int) -> int:
        """Return the number of combinations of ranks and shapes with at most ``bound`` parameters, up to ``limit``."""
        if bound is None:
            return min(limit, prod(shape.count() for shape in self.shapes))
        room, sizes = bound - self.fewest, []
        for shape in self.shapes:
            found = shape.sizes(room + shape.fewest(), limit)
            if not found or len(found) >= limit:  # each of them is a part of at least one combination
                return min(limit, len(found))
            sizes.append(found)
        return min(limit, len(bounded_sums(sizes, bound, limit)))


def plan_sites(model: nn.Module, adapter: AdapterSpec, search: SearchSettings, space: SpaceSettings) -> list[Sites]:
    """Return the maps of every option of targets and layers, each option once.

    Args:
        model: Body of the base; its modules may be on the meta device.
        adapter: Adapter of the task, for what the search does not choose.
        search: The search settings.
        space: Its section ``space``.

    Raises:
        InputError: If an option does not fit the base.
    """
    top = len(layer_list(model)) - 1
    layers: dict[tuple[int, int], str] = {}
    for text in space.layers or ():
        first, last = layer_ends(text)
        layers.setdefault((first, top if last is None else last), text)
    targets: dict[frozenset[str], tuple[str, ...]] = {}
    for roles in space.targets or ():
        targets.setdefault(frozenset(roles), roles)
    found: list[Sites] = []
    for roles in targets.values() or [adapter.targets]:
        for text in layers.values() or [""]:
            first, last = layer_ends(text) if text else (adapter.first_layer, adapter.last_layer)
            chosen = replace(adapter, method="tt", shape="auto", targets=roles, first_layer=first, last_layer=last)
            groups = _groups(model, chosen, space)
            label = ",".join(roles) if space.targets else ""
            shapes = _with_own_names(_shape_choices(groups, search, space), f"{label} {text}".strip(), found)
            found.append(Sites(label, text, chosen, groups, shapes))
    return found


def _groups(model: nn.Module, adapter: AdapterSpec, space: SpaceSettings) -> tuple[Group, ...]:
    try:
        groups = tuple(plan_groups(model, adapter))
    except InputError as error:
        key = error.where.partition(".")[2]
        where = f"search.space.{key}" if getattr(space, key, None) else error.where
        raise InputError(error.what, where=where, fix=error.fix) from error
    roles = [group.role for group in groups]
    for role in roles:
        if roles.count(role) > 1:
            what = f"the maps of role {role!r} have different widths in different layers, and one shape cannot fit them"
            raise InputError(what, where="search", fix="adapt layers in which they are equal (adapter.layers)")
    return groups


def _shape_choices(groups: tuple[Group, ...], search: SearchSettings, space: SpaceSettings) -> list[ShapeChoice]:
    parts: Sequence[tuple[Group, ...]] = [(group,) for group in groups] if space.per_role else [groups]
    return [
        ShapeChoice(
            part,
            different_ranks(part, search.ranks),
            fitting_pairs(part, search.cores),
            space.shapes == "all",
            f".{part[0].role}" if space.per_role else "",
        )
        for part in parts
    ]


def _with_own_names(shapes: list[ShapeChoice], label: str, earlier: list[Sites]) -> tuple[ShapeChoice, ...]:
    """Mark choices that have other options than one of the same name: a sampler knows the options by the name."""
    known: dict[str, tuple[Any, ...]] = {}
    for shape in (shape for sites in earlier for shape in sites.shapes):
        known.setdefault(shape.suffix, shape.options)
    return tuple(
        shape if known.get(shape.suffix, shape.options) == shape.options else replace(shape, mark=f"[{label}]")
        for shape in shapes
    )
