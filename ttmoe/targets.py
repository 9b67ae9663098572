"""Find the linear maps of a model that an adapter's targets select.

A *site* is one linear map in one layer, or the part of a fused map that plays one role (see ``ttmoe.architectures``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ttmoe.architectures import ROLES, architecture_of, layer_list, layer_path, role_locations
from ttmoe.errors import InputError
from ttmoe.layer import linear_size


@dataclass(frozen=True)
class Site:
    """One linear map, or part of a fused one, that can be adapted.

    Attributes:
        layer: Index of the transformer layer.
        role: A role, or the map's path inside the layer if a regular expression selected it.
        path: Path of the map in the model.
        in_features: Input width.
        out_features: Output width of the role: the number of ``rows``.
        rows: Output features of the map that play the role: a slice, or an index tensor if a fused map interleaves
            heads.
    """

    layer: int
    role: str
    path: str
    in_features: int
    out_features: int
    rows: slice | torch.Tensor

    @property
    def key(self) -> tuple:
        """The weights that the site covers: equal for two sites of different ``role`` on the same weights."""
        return (self.path, self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else (self.path, self.role)


def find_sites(model: nn.Module, targets: Iterable[str], first: int = 0, last: int | None = None) -> list[Site]:
    """Return the sites of ``targets`` in layers ``first`` to ``last``, target by target and layer by layer.

    A site that two targets select is returned once, for the first of them.

    Args:
        model: Transformers body; may be on the meta device.
        targets: Roles, or regular expressions that match the whole path of a linear map inside its layer.
        first: Index of the first layer.
        last: Index of the last layer, inclusive; None for the model's last layer.

    Raises:
        InputError: If a target selects nothing or is not a regular expression, or if the layer range is empty or not
            in the model.
    """
    layers = layer_list(model)
    end = len(layers) - 1 if last is None else last
    if not 0 <= first <= end < len(layers):
        raise InputError(f"layers {first} to {end} are not a range of the base's {len(layers)} layers "
                         f"(0 to {len(layers) - 1})", where="adapter.layers",
                         fix=f"write `all`, or a range such as {len(layers) // 2}-")  # fmt: skip
    prefix = layer_path(model)
    sites: dict[tuple, Site] = {}
    for target in targets:
        _require_regular_expression(target)
        matches = [site for i in range(first, end + 1)
                   for site in _sites_in_layer(model, layers[i], f"{prefix}.{i}", i, target)]  # fmt: skip
        if not matches:
            raise _no_match(model, layers[first], target)
        for site in matches:
            sites.setdefault(site.key, site)
    return list(sites.values())


def _require_regular_expression(target: str) -> None:
    try:
        re.compile(target)
    except re.error as error:
        raise InputError(f"target {target!r} is not a regular expression ({error})", where="adapter.targets",
                         fix=f"use a role ({', '.join(ROLES)}) or a path such as mlp\\..*_proj") from error  # fmt: skip


def _sites_in_layer(model: nn.Module, layer: nn.Module, prefix: str, index: int, target: str) -> list[Site]:
    locations = role_locations(model)
    if target in locations:
        path, output_rows = locations[target]
        size = linear_size(layer.get_submodule(path))
        if size is None:
            return []
        rows = output_rows(model.config, size[1])
        width = len(range(size[1])[rows]) if isinstance(rows, slice) else len(rows)
        return [Site(index, target, f"{prefix}.{path}", size[0], width, rows)]
    if target in ROLES:
        return []
    return [Site(index, path, f"{prefix}.{path}", *size, slice(0, size[1]))
            for path, size in _linear_maps(layer) if re.fullmatch(target, path)]  # fmt: skip


def _linear_maps(layer: nn.Module) -> list[tuple[str, tuple[int, int]]]:
    sizes = [(path, linear_size(module)) for path, module in layer.named_modules() if not path.endswith(".inner")]
    return [(path, size) for path, size in sizes if size]


def _no_match(model: nn.Module, layer: nn.Module, target: str) -> InputError:
    valid = [*role_locations(model), *(path for path, _ in _linear_maps(layer))]
    similar = difflib.get_close_matches(target, valid, 1)
    return InputError(f"target {target!r} matches no linear map of architecture {architecture_of(model)!r}",
                      where="adapter.targets", fix=(f"did you mean {similar[0]!r}? " if similar else "")
                      + f"valid targets: {', '.join(valid)}")  # fmt: skip
