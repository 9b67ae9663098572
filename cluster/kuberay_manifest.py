"""The manifest of a job on Kubernetes: a ConfigMap with its files, and a RayJob, checked by a strict schema."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from cluster.error import ClusterError
from cluster.job_files import JobFiles
from cluster.jobs import JOB_VARIABLE
from cluster.kuberay_profile import KubeRayProfile
from cluster.rendering import render_template

ANNOTATION = "ttmoe/"
"""Prefix of the annotations that keep a job's id and its metadata."""
CONFIG_MAP_BYTES = 1_000_000
"""Largest size of a job's files. Kubernetes allows 1 MiB in a ConfigMap, names included."""
NAME_LENGTH = 47  # of a RayJob; KubeRay appends to it, and a label has 63 characters
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOUNT = "/etc/ttmoe"
_PREEMPTIBLE = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# Python that ends with an error where another version of this code is installed.
_SAME_VERSION = """
import sys
from importlib.metadata import version

own, theirs = version("ttmoe"), sys.argv[1]
if own != theirs:
    sys.exit(f"The image has ttmoe {own}, and the job was submitted with {theirs}: give an image of this version.")
""".strip()


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, where YAML can."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)


def rayjob_name(job_id: str) -> str:
    """Return the name of a job's objects: its id, if Kubernetes takes it, else a similar one with a hash."""
    name = re.sub(r"[^a-z0-9]+", "-", job_id.lower()).strip("-")
    if name == job_id and len(name) <= NAME_LENGTH and name[0].isalpha():
        return name
    name = name if name[:1].isalpha() else f"job-{name}"
    digest = hashlib.sha256(job_id.encode()).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - 9].rstrip('-')}-{digest}"


def rayjob_manifest(
    profile: KubeRayProfile,
    job_id: str,
    command: str,
    files: JobFiles,
    env: Mapping[str, str],
    metadata: Mapping[str, str],
) -> str:
    """Return the manifest of a job: YAML of two documents.

    Args:
        profile: The cluster.
        job_id: Id of the job.
        command: Shell command of the job, run in a folder with its files.
        files: Its files, without code, which the image has.
        env: Environment variables of the driver; none may be secret.
        metadata: Texts to keep with the job.

    Raises:
        ClusterError: If the files are too large, a variable has a password, or the manifest is not valid.
    """
    _check_no_password(env)
    paths, texts, binaries = _config_map(profile, files)
    name = rayjob_name(job_id)
    text = render_template(
        "rayjob.yaml.j2",
        profile=profile,
        name=name,
        annotations={f"{ANNOTATION}{key}": value for key, value in {"job": job_id, **metadata}.items()},
        mount=_MOUNT,
        folder_quoted=shlex.quote(f"{profile.storage}/jobs/{job_id}"),
        python_quoted=shlex.quote(profile.python),
        same_version_quoted=f"{shlex.quote(_SAME_VERSION)} {version('ttmoe')}",
        command_quoted=shlex.quote(command),
        preemptible=_PREEMPTIBLE,
        ray_version=version("ray"),
        env={JOB_VARIABLE: job_id, "RAY_JOB_STOP_WAIT_TIME_S": str(profile.grace), **env},
        paths=paths,
        texts=yaml.dump(texts, Dumper=_Dumper, width=2**31).removesuffix("\n"),
        binaries=binaries,
    )
    check_manifest(text)
    return text


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of the documents of a manifest; it allows what is written here, and nothing else."""
    text = package_files("cluster").joinpath("templates", "rayjob.schema.yaml").read_text(encoding="utf-8")
    schema: dict[str, Any] = yaml.load(text, _Loader)
    return schema


def check_manifest(text: str) -> None:
    """Raise ClusterError if a document of a manifest does not follow the schema."""
    validator = Draft202012Validator(manifest_schema())
    for document in yaml.load_all(text, _Loader):
        if error := best_match(validator.iter_errors(document)):
            place = ".".join(map(str, error.absolute_path)) or "document"
            what = f"the manifest is wrong at {place}: {error.message[:300]}"
            raise ClusterError(what, where="clusters, kind: kuberay", fix="correct the profile of the cluster")


def _config_map(profile: KubeRayProfile, files: JobFiles) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return the path of each key in the working directory, the texts by key, and other contents in base64 by key."""
    contents = files.contents()
    sizes = {
        path: len(each.encode()) if isinstance(each, str) else each.stat().st_size for path, each in contents.items()
    }
    if sum(sizes.values()) > CONFIG_MAP_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        what = (
            f"the job's files have {sum(sizes.values()):,} bytes, and a ConfigMap holds {CONFIG_MAP_BYTES:,}; "
            f"the largest has {sizes[largest]:,}"
        )
        fix = f"copy it into the claim {profile.claim}, and write its path below {profile.storage} in the config"
        raise ClusterError(
            what, where=str(contents[largest]) if isinstance(contents[largest], Path) else largest, fix=fix
        )
    paths: dict[str, str] = {}
    texts: dict[str, str] = {}
    binaries: dict[str, str] = {}
    for number, (path, content) in enumerate(contents.items()):
        key = path if re.fullmatch(r"\w[-.\w]*", path, re.ASCII) else f"file-{number}"
        data = content.encode() if isinstance(content, str) else content.read_bytes()
        paths[key] = path
        try:
            texts[key] = data.decode()
        except UnicodeDecodeError:
            binaries[key] = base64.b64encode(data).decode()
    return paths, texts, binaries


def _check_no_password(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if "://" in value and urlsplit(value).password:
            fix = (
                "write it without user and password, and give the name of a Secret with "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as `secret` of the cluster"
            )
            raise ClusterError("it has a password, which the manifest would show", where=name, fix=fix)
