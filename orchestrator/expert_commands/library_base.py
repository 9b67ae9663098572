"""The base that a library's experts were trained on, found as ``ttmoe predict`` finds it."""

from __future__ import annotations

import json
import os
from typing import Any

import yaml

from orchestrator.pyfunc import find_base
from orchestrator.registry import Registry, Version
from ttmoe.base import Base
from ttmoe.errors import InputError
from ttmoe.expert_files import MANIFEST


def base_of(registry: Registry, version: Version) -> Base:
    """The base of an expert. Raises InputError where it is not found, or another one is."""
    identity = json.loads(registry.read_file(version, MANIFEST))["base"]
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
    return base_of(registry, max(experts, key=lambda each: ("champion" in each.aliases, each.created)))


def _place_of_router(registry: Registry, library: str) -> str:
    """Where the newest router found the base when it was trained."""
    routers = registry.routers(library)
    if not routers:
        return ""
    described: dict[str, Any] = yaml.safe_load(registry.read_file(routers[-1], "MLmodel"))
    return str((described["flavors"]["python_function"].get("config") or {}).get("base") or "")
