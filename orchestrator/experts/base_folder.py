"""Find the folder of the base that an expert or a router was trained on, and check its digest."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ttmoe.base import Base, digest_folder, sha256_of_file
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST
from workers.data.file_digests import remembered_digest

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version


def base_of_version(registry: Registry, version: Version) -> Base:
    """Return the base of an expert, from TTMOE_BASE or from where the library's newest router recorded it.

    Raises:
        InputError: If the folder is missing, or contains another base.
    """
    identity = json.loads(registry.read_file(version, EXPERT_MANIFEST))["base"]
    folder = os.environ.get("TTMOE_BASE") or _folder_of_router(registry, version.library)
    try:
        return find_base(identity, folder)
    except InputError as error:
        fix = "set the variable TTMOE_BASE to the folder of the base"
        raise InputError(error.what, where=f"the base of {version.task} v{version.version}", fix=fix) from error


def library_base(registry: Registry, library: str) -> Base:
    """Return the base of the library's newest champion, or of its newest expert if it has no champion.

    Raises:
        InputError: If the library has no expert, or the base is not found.
    """
    experts = registry.experts(library)
    if not experts:
        what = "the library has no expert, so its base is unknown"
        raise InputError(what, where=f"library {library}", fix="train one of its experts with `ttmoe run` first")
    newest = max(experts, key=lambda expert: ("champion" in expert.aliases, expert.created))
    return base_of_version(registry, newest)


def registered_base(folder: Path, cache: Path | None = None) -> Base:
    """Return the base of the router in a registered folder, from TTMOE_BASE or the folder's MLmodel file.

    Args:
        folder: The router's folder.
        cache: Root folder of the cache with the digests of files that did not change; None reads all files.

    Raises:
        InputError: If the base is missing, or another one.
    """
    return router_base(folder, _model_config((folder / "MLmodel").read_text()), cache)


def router_base(folder: Path, config: dict[str, Any], cache: Path | None = None) -> Base:
    """Return the base of the router in ``folder``, from TTMOE_BASE or ``config["base"]``.

    Raises:
        InputError: If the base is missing, or another one.
    """
    identity = json.loads((folder / "router.json").read_text())["base"]
    return find_base(identity, os.environ.get("TTMOE_BASE") or config.get("base") or "", cache)


def find_base(identity: dict[str, Any], folder: str, cache: Path | None = None) -> Base:
    """Return the base with this identity (``Base.identity()``) in ``folder``.

    Args:
        identity: The identity.
        folder: The folder; may be empty.
        cache: Root folder of the cache with the digests of files that did not change; None reads all files.

    Raises:
        InputError: If the folder is missing, or its digest is not that of the identity.
    """
    fix = 'give its folder: load_model(uri, model_config={"base": folder}), or the variable TTMOE_BASE'
    sha256 = partial(remembered_digest, cache=cache) if cache else sha256_of_file
    if not folder or not Path(folder).is_dir():
        raise InputError(f"base {identity['id']!r} is not in folder {folder!r}", where="base", fix=fix)
    if (digest := digest_folder(Path(folder), sha256)) != identity["digest"]:
        expected = f"{identity['id']!r} ({identity['digest'][:12]})"
        raise InputError(f"{folder} contains base {digest[:12]}, not {expected}", where="base", fix=fix)
    return Base(**identity, folder=folder)


def _folder_of_router(registry: Registry, library: str) -> str:
    """Return the base folder that the library's newest router recorded; empty if there is none."""
    routers = registry.routers(library)
    return str(_model_config(registry.read_file(routers[-1], "MLmodel")).get("base") or "") if routers else ""


def _model_config(text: str | bytes) -> dict[str, Any]:
    """Return the ``model_config`` that is stored in the text of an MLmodel file."""
    return yaml.safe_load(text)["flavors"]["python_function"].get("config") or {}
