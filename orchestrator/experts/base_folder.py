"""Find the folder of the base that an expert or a router was trained on, and check its digest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ttmoe.base import Base, contains_base, digest_folder, sha256_of_file
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST
from ttmoe.template_files import read_chat_template
from workers.data.file_digests import remembered_digest

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version

_FIX_OF_COMMANDS = (
    "if it was moved, repeat `ttmoe run CONFIG` with its new place in the config, which records it and trains nothing; "
    "or set the variable TTMOE_BASE to its folder"
)


def base_of_version(registry: Registry, version: Version) -> Base:
    """Return the base of an expert, from TTMOE_BASE or from where the library's champion router has it.

    Raises:
        InputError: If the folder is missing, or contains another base.
    """
    recorded = registry.read_json(version, EXPERT_MANIFEST)["base"]
    folders = [os.environ["TTMOE_BASE"]] if os.environ.get("TTMOE_BASE") else _recorded_folders(registry, version)
    try:
        return find_base(recorded, folders)
    except InputError as error:
        where = f"the base of {version.task} v{version.version}"
        raise InputError(error.what, where=where, fix=_FIX_OF_COMMANDS) from error


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


def registered_base(router: Version, folder: Path, cache: Path) -> Base:
    """Return the base of a registered router, from TTMOE_BASE or from where a run saw it last.

    Args:
        router: The router's version.
        folder: Local folder of its files.
        cache: Root folder of the cache with the digests of files that did not change.

    Raises:
        InputError: If the base is missing, or another one.
    """
    folders = _folders(router, (folder / "MLmodel").read_text())
    return _router_base(folder, folders, cache, _FIX_OF_COMMANDS)


def router_base(folder: Path, config: dict[str, Any]) -> Base:
    """Return the base of the router in ``folder``, from TTMOE_BASE or ``config["base"]``.

    Raises:
        InputError: If the base is missing, or another one.
    """
    fix = 'give its folder: load_model(uri, model_config={"base": folder}), or the variable TTMOE_BASE'
    return _router_base(folder, [config.get("base") or ""], None, fix)


def _router_base(folder: Path, folders: Sequence[str], cache: Path | None, fix: str) -> Base:
    recorded = json.loads((folder / "router.json").read_text())["base"]
    given = os.environ.get("TTMOE_BASE")
    try:
        return find_base(recorded, [given] if given else folders, cache)
    except InputError as error:
        raise InputError(error.what, where="base", fix=fix) from error


def find_base(recorded: dict[str, Any], folders: Sequence[str], cache: Path | None = None) -> Base:
    """Return a recorded base, in the first folder that contains it.

    Args:
        recorded: What a file of an expert or router records about its base: ``Base.record()``.
        folders: Folders to look in.
        cache: Root folder of the cache with the digests of files that did not change; None reads all files.

    Raises:
        InputError: If none of the folders contains a base of the recorded digest.
    """
    sha256 = partial(remembered_digest, cache=cache) if cache else sha256_of_file
    problems = []
    for folder in folders:
        try:
            _require_base(folder, recorded, sha256)
        except InputError as error:
            problems.append(error.what)
        else:
            return Base(**recorded, folder=folder, chat_template=read_chat_template(Path(folder)))
    raise InputError("; ".join(problems) or f"nothing records where base {recorded['id']!r} is", where="base")


def _require_base(folder: str, recorded: dict[str, Any], sha256: Callable[[Path], str]) -> None:
    if not folder or not Path(folder).is_dir():
        raise InputError(f"base {recorded['id']!r} is not in folder {folder!r}")
    if not contains_base(Path(folder), recorded["digest"], sha256):
        found, expected = digest_folder(Path(folder), sha256), f"{recorded['id']!r} ({recorded['digest'][:12]})"
        raise InputError(f"{folder} contains base {found[:12]}, not {expected}")


def _recorded_folders(registry: Registry, version: Version) -> list[str]:
    """Return where the champion router of a version's library has its base; empty if there is no router."""
    from orchestrator.registry.versions import CHAMPION

    routers = registry.routers(version.library)
    if not routers:
        return []
    router = max(routers, key=lambda each: (CHAMPION in each.aliases, each.version))
    return _folders(router, registry.read_file(router, "MLmodel"))


def _folders(router: Version, model_file: str | bytes) -> list[str]:
    """Return where a run saw the router's base last, and where it was when the router was trained."""
    from orchestrator.registry.versions import BASE_FOLDER

    folders = [router.tags.get(BASE_FOLDER), _model_config(model_file).get("base")]
    return list(dict.fromkeys(folder for folder in folders if folder))


def _model_config(text: str | bytes) -> dict[str, Any]:
    """Return the ``model_config`` that is stored in the text of an MLmodel file; nothing if it is damaged."""
    try:
        return dict(yaml.safe_load(text)["flavors"]["python_function"].get("config") or {})
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}
