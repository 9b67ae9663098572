"""``ttmoe doctor --cluster``: the same command as a job of the cluster, whose lines are shown here."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console

from cluster.jobs import ClusterJobs, require_job
from cluster.kinds import open_cluster
from cluster.profiles import ClusterProfile
from orchestrator.config.loading import LoadedConfig
from orchestrator.doctor.place import place_of
from orchestrator.submit.job_package import JobPackage, pack_job
from orchestrator.submit.job_screen import job_failed_error
from ttmoe.errors import InputError

_BEGIN, _END = "{", "}"  # the first and the last line of a JSON object of several lines
_CHECKS_FAILED = 1


def examine_cluster(
    loaded: LoadedConfig | None,
    profile: ClusterProfile,
    command: Sequence[str],
    console: Console,
    *,
    as_json: bool = False,
) -> bool:
    """Submit a job that makes the checks on a cluster, and print its lines until it ends.

    Args:
        loaded: The user's config, of which storage, MLflow store and resources are used; None for the profile's.
        profile: The cluster.
        command: Arguments of ``ttmoe`` there.
        console: Console to print to.
        as_json: Print only the JSON object that the job prints.

    Returns:
        Whether no check failed.

    Raises:
        InputError: If the cluster's profile is not complete.
        WorkFailedError: If the job failed before it made the checks.
    """
    package = pack_checks(loaded, profile, [*command, "--json"] if as_json else command)
    jobs: ClusterJobs = open_cluster(profile)
    job_id = f"{package.library}-{secrets.token_hex(3)}"  # of its own: earlier checks say nothing about today
    jobs.submit(job_id, package.command, package.files, package.env, {"library": package.library})
    if not as_json:
        console.print(f"Job {job_id} on {jobs.place}", highlight=False, markup=False, soft_wrap=True)
    try:
        lines = jobs.follow(job_id)
        for line in _json_lines(lines) if as_json else lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        jobs.stop(job_id)
        raise
    job = require_job(jobs, job_id)
    if job.status != "SUCCEEDED" and job.exit_code != _CHECKS_FAILED:
        raise job_failed_error(job)
    return job.status == "SUCCEEDED"


def pack_checks(loaded: LoadedConfig | None, profile: ClusterProfile, command: Sequence[str]) -> JobPackage:
    """Return the job that makes the checks; the base and the tasks of the user's config are not taken along.

    Args:
        loaded: The user's config, or None.
        profile: The cluster.
        command: Arguments of ``ttmoe`` there.

    Raises:
        InputError: If neither the profile nor the config names the storage folder.
    """
    place = place_of(loaded, profile.storage)
    if "root" not in place.storage.model_fields_set:
        fix = "name a folder that all nodes share as `storage` of the cluster, or as storage.root of a config"
        raise InputError("the storage of the cluster is not known", where="clusters, storage", fix=fix)
    # The stand-ins for base and data lie in the storage folder, so none is looked for here.
    profile = profile.model_copy(update={"storage": place.storage.root})
    source = loaded.source_name if loaded else "doctor"
    package = pack_job(LoadedConfig(place, source, ""), profile, " ".join(command), plan_first=False)
    return replace(package, library="ttmoe-drill" if "--drill" in command else "ttmoe-doctor")


def _json_lines(lines: Iterable[str]) -> list[str]:
    """Return the lines of the JSON object among those of a job's output; all of them if there is none."""
    kept = list(lines)
    if _BEGIN not in kept or _END not in kept:
        return kept
    return kept[kept.index(_BEGIN) : len(kept) - kept[::-1].index(_END)]
