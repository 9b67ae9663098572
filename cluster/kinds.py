"""The kinds of clusters: what each profile opens, and what it is asked to run."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.cloud_profiles import CloudProfile
from cluster.job_files import JobFiles
from cluster.jobs import ClusterJobs
from cluster.kuberay_profile import KubeRayProfile
from cluster.profiles import ClusterProfile, LocalProfile, RayProfile, SlurmProfile


def open_cluster(profile: ClusterProfile) -> ClusterJobs:
    """Return the jobs of a cluster.

    Raises:
        ClusterError: If it cannot be reached from here.
    """
    match profile:
        case LocalProfile():
            from cluster.local_jobs import LocalJobs

            return LocalJobs(profile)
        case RayProfile():
            from cluster.ray_jobs import RayJobs

            return RayJobs(profile.address)
        case SlurmProfile():
            from cluster.slurm_jobs import SlurmJobs

            return SlurmJobs(profile)
        case KubeRayProfile():
            from cluster.kuberay_jobs import KubeRayJobs

            return KubeRayJobs(profile)
        case CloudProfile():
            from cluster.cloud_jobs import CloudJobs

            return CloudJobs(profile)


def job_text(
    profile: ClusterProfile,
    job_id: str,
    command: str,
    files: JobFiles,
    env: Mapping[str, str],
    metadata: Mapping[str, str],
) -> str:
    """Return what the cluster is asked to run, as text: the request, the script, the manifest, or the cluster's file.

    The arguments are those of ``ClusterJobs.submit``.
    """
    request = f"# job {job_id}\n# command: {command}"
    match profile:
        case LocalProfile():
            return f"# this machine\n{request}"
        case RayProfile():
            return f"# {profile.address}\n{request}"
        case SlurmProfile():
            from cluster.job_folders import SCRIPT, JobFolder
            from cluster.slurm_jobs import slurm_script

            script = JobFolder.of(profile.storage, job_id).path / SCRIPT
            return f"# sbatch {script}\n{slurm_script(profile, job_id, command)}"
        case KubeRayProfile():
            from cluster.kuberay_manifest import rayjob_manifest

            return rayjob_manifest(profile, job_id, command, files, env, metadata)
        case CloudProfile():
            from cluster.cloud_jobs import waiting_command
            from cluster.launcher import launcher_text

            return f"{launcher_text(profile)}# job {job_id}\n# command: {waiting_command(profile, command)}"
