"""What a job takes to the cluster: its config with the paths that it has there, data files, and this code."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.job_files import JobFiles
from cluster.kuberay_profile import KubeRayProfile
from cluster.local import PASSED_ON
from cluster.profiles import ClusterProfile, LocalProfile
from orchestrator.config.completion import mask_on_end
from orchestrator.config.declared import refuse_declared
from orchestrator.config.loading import LoadedConfig
from orchestrator.config.schema import Config
from orchestrator.config.store_address import TRACKING_VARIABLE
from orchestrator.config.yaml_document import dump_yaml
from ttmoe.errors import InputError

_CODE = ("orchestrator", "workers", "ttmoe", "cluster")
CONFIG_FILE = "config.yaml"
PLAN_FITS = "The plan fits the cluster; the run starts."
"""Line that a job prints between its plan and its run."""
# Variables that reach the MLflow server or the hub, passed on if they are set.
_SECRETS = (*PASSED_ON, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class JobPackage:
    """A job before it is submitted.

    Attributes:
        library: Name of the library.
        source: Name of the config.
        command: Shell command of the job.
        files: Files of its working directory.
        env: Its environment variables. Their values may be secret.
        storage: ``storage.root`` on the cluster.
        tracking: URI of the MLflow store; None for the one in the storage folder.
        image: Image that brings the code; None where the files do.
    """

    library: str
    source: str
    command: str
    files: JobFiles
    env: Mapping[str, str]
    storage: str
    tracking: str | None
    image: str | None = None

    @cached_property
    def id(self) -> str:
        """Id of the job: the same files, command, store and image have the same."""
        key = f"{self.files.digest()} {self.command} {self.tracking}" + (f" {self.image}" if self.image else "")
        return f"{self.library}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"

    @property
    def metadata(self) -> dict[str, str]:
        """Texts that are kept with the job."""
        return {"library": self.library, "config": self.source}


def pack_job(
    loaded: LoadedConfig, profile: ClusterProfile, command: str = "run", *, plan_first: bool = True
) -> JobPackage:
    """Return the job that runs a config on a cluster.

    Local files that the config names are taken along, except those in the shared storage of the cluster.

    Args:
        loaded: The config.
        profile: The cluster.
        command: Command of ``ttmoe`` that the job runs, with the config as its argument.
        plan_first: Show the plan of the config before (of its search for the command ``tune``), and stop if it does not
            fit the cluster.

    Raises:
        InputError: If the storage is not a folder that all nodes share, or a file is missing or too large, or a
            variable that the profile passes on is not set.
    """
    config = loaded.config
    refuse_declared(config)
    root = storage_root(config, profile)
    for key, path in {"storage.root": root, "storage.cache": config.storage.cache}.items():
        if path and not Path(path).is_absolute():
            what = f"{path!r} is relative: on the cluster it would be a folder that is removed after the job"
            fix = "give the absolute path of a folder that all nodes share, or name it as `storage` of the cluster"
            raise InputError(what, where=key, fix=fix)
    data = config.model_dump(mode="json", exclude_none=True, by_alias=True)
    data["storage"]["root"] = root
    tracking = tracking_uri(config, profile)
    data.pop("tracking", None)
    data.pop("clusters", None)
    paths: dict[str, Path] = {}
    for where, section, key in _local_paths(data):
        if not profile.is_on_cluster(section[key]):
            section[key] = _take(Path(section[key]), where, paths)
    image = profile.image if isinstance(profile, KubeRayProfile) else None
    if image and config.on_end and mask_on_end(config.on_end) != config.on_end:
        what = "its secret would stand in the job's manifest, which many can read"
        fix = 'write a command that reads it from a variable of the cluster\'s `secret`: curl -d @- "$MY_URL"'
        raise InputError(what, where="on_end", fix=fix)
    config_text = {CONFIG_FILE: dump_yaml(data)}
    files = JobFiles(paths, config_text) if image else JobFiles(paths, config_text | _own_metadata(), _own_code())
    files.check_size(profile.storage)
    python = f"{shlex.quote(profile.python)} -m orchestrator.cli"
    planning = "tune --dry-run" if command == "tune" else "plan"
    plan = f'{python} {planning} {CONFIG_FILE} && echo "{PLAN_FITS}" && ' if plan_first else ""
    line = f"{plan}exec {python} {command} {CONFIG_FILE}"
    return JobPackage(
        config.library, loaded.source_name, line, files, _environment(profile, tracking), root, tracking, image
    )


def _own_code() -> dict[str, Path]:
    """Return the folder of each package of this code."""
    return {name: Path(str(find_spec(name).origin)).parent for name in _CODE}  # type: ignore[union-attr]


def _own_metadata() -> dict[str, str]:
    """Return the file by which Python knows the version of this code."""
    own = distribution("ttmoe")
    about = own.read_text("METADATA") or own.read_text("PKG-INFO") or ""  # the latter in the egg-info of a checkout
    return {f"ttmoe-{own.version}.dist-info/METADATA": about}


def storage_root(config: Config, profile: ClusterProfile) -> str:
    """Return ``storage.root`` of a config on a cluster."""
    root = config.storage.root if "root" in config.storage.model_fields_set or not profile.storage else profile.storage
    return str(Path(root).resolve()) if isinstance(profile, LocalProfile) else root


def tracking_uri(config: Config, profile: ClusterProfile) -> str | None:
    """Return the URI of the MLflow server of a config on a cluster; None for the store in the storage folder."""
    return config.tracking.uri or profile.tracking or os.environ.get(TRACKING_VARIABLE)


def _local_paths(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each local path of a config: its dotted key, the section that has it, and its key there."""
    if data["base"].get("folder"):
        yield "base.folder", data["base"], "folder"
    for task, entry in data["tasks"].items():
        for key in ("source", "routing_rows"):
            source = entry.get(key) or {}
            for part in (source, *(value for value in source.values() if isinstance(value, dict))):
                if part.get("path"):
                    yield f"tasks.{task}.{key}.path", part, "path"


def _take(path: Path, where: str, paths: dict[str, Path]) -> str:
    """Add a local file or folder to those that are taken along; return its path in the working directory."""
    if not path.exists():
        what = f"{path} does not exist on this machine, and is not in the shared storage of the cluster"
        raise InputError(what, where=where, fix="correct it, or give `storage` of the cluster, and a path in it")
    name = f"data/{hashlib.sha256(str(path).encode()).hexdigest()[:8]}/{path.name}"
    paths[name] = path
    return name


def _environment(profile: ClusterProfile, tracking: str | None) -> dict[str, str]:
    own = {TRACKING_VARIABLE: tracking} if tracking else {}
    if isinstance(profile, KubeRayProfile):  # what is secret is in a Secret there: nothing is passed on from here
        return own
    missing = [name for name in profile.env if name not in os.environ]
    if missing:
        what = f"the cluster's profile passes on {', '.join(missing)}, not set here"
        raise InputError(what, where="clusters, env", fix="set it, or remove it from `env`")
    env = {name: os.environ[name] for name in (*_SECRETS, *profile.env) if name in os.environ}
    return env | own
