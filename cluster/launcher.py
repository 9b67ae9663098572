"""The file from which Ray's launcher starts a cluster on a cloud, checked by Ray's own schema."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
from pathlib import Path

import yaml

from cluster.cloud_profiles import CloudProfile, GcpProfile
from cluster.error import ClusterError
from cluster.rendering import render_template

SDKS = {"aws": ("boto3", "boto3"), "gcp": ("googleapiclient", "google-api-python-client google-auth-httplib2")}
"""Module and packages by which Ray reaches each cloud."""
_TOKEN = "~/.ray/auth_token"


def cluster_name(profile: CloudProfile) -> str:
    """Return the name of a cluster: a changed profile is another cluster, so no running job is restarted."""
    user = re.sub(r"[^a-z0-9]", "", getpass.getuser().lower())[:16]
    return f"ttmoe-{user}-{hashlib.sha256(profile.model_dump_json().encode()).hexdigest()[:8]}"


def launcher_file(profile: CloudProfile) -> Path:
    """Return the path of the launcher file, in the user's folder of states."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "ttmoe" / "clusters" / f"{cluster_name(profile)}.yaml"


def launcher_text(profile: CloudProfile) -> str:
    """Return the file from which Ray's launcher starts the cluster."""
    resources = {"CPU": profile.cpus} if isinstance(profile, GcpProfile) else {}
    token = Path(_TOKEN).expanduser()  # where the user has one, the machines get it, and ask for it
    has_token = token.is_file()
    return render_template(
        "launcher.yaml.j2",
        profile=profile,
        name=cluster_name(profile),
        resources=resources | ({"GPU": profile.gpus} if profile.gpus else {}),
        mounts={_TOKEN: str(token)} if has_token else {},
        environment="export RAY_AUTH_MODE=token; " if has_token else "",
        ray=f"{profile.python} -m ray.scripts.scripts",
        sdk=SDKS[profile.kind][1],
    )


def check_launcher(text: str, where: str) -> None:
    """Raise ClusterError if Ray would refuse the launcher file.

    Args:
        text: The file.
        where: The cluster, for the error.
    """
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    try:
        validate_config({"cluster_synced_files": [], **yaml.safe_load(text)})  # `ray up` adds that one
    except (yaml.YAMLError, ValidationError, ValueError, TypeError) as error:
        reason = error.message if isinstance(error, ValidationError) else " ".join(str(error).split())
        fix = "correct the cluster's profile; `--dry-run` shows the file"
        raise ClusterError(f"Ray would refuse the launcher file: {reason}", where=where, fix=fix) from None
