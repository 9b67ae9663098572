"""The cluster of a command: a profile of the config, of the user's file of clusters, or an address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.profiles import ClusterProfile, LocalProfile, RayProfile
from orchestrator.config.error_messages import to_input_error
from orchestrator.config.store_address import DEFAULT_ROOT
from orchestrator.config.yaml_document import read_yaml
from ttmoe.errors import InputError

LOCAL = "local"


class _ClusterFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    clusters: dict[str, ClusterProfile] = Field(default_factory=dict)


def find_cluster(name: str, of_config: Mapping[str, ClusterProfile] | None = None) -> ClusterProfile:
    """Return the profile of a cluster.

    Args:
        name: Name of a profile, or the address of a cluster's dashboard. ``local`` is this machine with the default
            storage root, unless a profile has this name.
        of_config: The section ``clusters`` of the config; it comes before the user's file.

    Raises:
        InputError: If there is no such profile, or the user's file is not valid.
    """
    if "://" in name:
        return RayProfile(kind="ray", address=name)
    path = clusters_file()
    profiles = {**_read(path), **(of_config or {})}
    if name in profiles:
        return profiles[name]
    if name == LOCAL:
        return LocalProfile(kind="local", storage=str(DEFAULT_ROOT.resolve()))
    what = f"there is no cluster {name!r}; clusters: {', '.join(sorted(profiles)) or 'none'}"
    fix = f"describe it in the section `clusters` of the config or of {path}, or write its address: http://HOST:8265"
    raise InputError(what, where="--cluster", fix=fix)


def clusters_file() -> Path:
    """Return the path of the user's file of clusters, ``~/.config/ttmoe/clusters.yaml``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "ttmoe" / "clusters.yaml"


def _read(path: Path) -> dict[str, ClusterProfile]:
    if not path.is_file():
        return {}
    document = read_yaml(path.read_text(encoding="utf-8"), str(path))
    try:
        return _ClusterFile.model_validate(document.data).clusters
    except ValidationError as error:
        raise to_input_error(error, document, document.data, {}, _ClusterFile) from None
