"""The base that a library's experts were trained on, found as ``ttmoe predict`` finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ttmoe.base import Base, digest_folder
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version


def base_of_version(registry: Registry, version: Version) -> Base:
    """The base of an expert. Raises InputError where it is not found, or another one is."""
    identity = json.loads(registry.read_file(version, EXPERT_MANIFEST))["base"]
    place = os.environ.get("TTMOE_BASE") or _place_of_router(registry, version.library)
    try:
        return find_base(identity, place)
    except InputError as error:
        fix = "let the variable TTMOE_BASE name the folder that the base lies in"
        raise InputError(error.what, where=f"the base of {version.task} v{version.version}", fix=fix) from error


def library_base(registry: Registry, library: str) -> Base:
    """The base of the library: that of its newest champion, or of its newest expert.

    Raises InputError for a library that has no expert yet: nothing says then what it stands on.
    """
    experts = registry.experts(library)
    if not experts:
        fix = "let `ttmoe run` train one of its experts first"
        raise InputError("the library has no expert yet, so its base is not known", where=f"library {library}", fix=fix)
    return base_of_version(registry, max(experts, key=lambda each: ("champion" in each.aliases, each.created)))


def _place_of_router(registry: Registry, library: str) -> str:
    """Where the newest router found the base when it was trained."""
    routers = registry.routers(library)
    if not routers:
        return ""
    described: dict[str, Any] = yaml.safe_load(registry.read_file(routers[-1], "MLmodel"))
    return str((described["flavors"]["python_function"].get("config") or {}).get("base") or "")


def registered_base(folder: Path) -> Base:
    """The base of the router in a registered folder: TTMOE_BASE, or where the folder's MLmodel file says."""
    described = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    return router_base(folder, described.get("config") or {})


def router_base(folder: Path, config: dict[str, Any]) -> Base:
    identity = json.loads((folder / "router.json").read_text())["base"]
    return find_base(identity, os.environ.get("TTMOE_BASE") or config.get("base") or "")


def find_base(identity: dict[str, Any], place: str) -> Base:
    """The base of that identity in the folder ``place``."""
    fix = 'give its folder: load_model(uri, model_config={"base": folder}), or the variable TTMOE_BASE'
    if not place or not Path(place).is_dir():
        raise InputError(f"base {identity['id']!r} is not at {place!r}", where="base", fix=fix)
    if (digest := digest_folder(Path(place))) != identity["digest"]:
        wanted = f"{identity['id']!r} ({identity['digest'][:12]})"
        raise InputError(f"{place} holds base {digest[:12]}, not {wanted}", where="base", fix=fix)
    return Base(**identity, folder=place)
