"""The kinds of clusters: what each profile opens, and what it is asked to run."""

from __future__ import annotations

from cluster.cloud_profiles import CloudProfile
from cluster.jobs import ClusterJobs
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
        case CloudProfile():
            from cluster.cloud_jobs import CloudJobs

            return CloudJobs(profile)


def job_text(profile: ClusterProfile, job_id: str, command: str) -> str:
    """Return what the cluster is asked to run, as text: the request, the script, or the file of the cluster."""
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
        case CloudProfile():
            from cluster.cloud_jobs import waiting_command
            from cluster.launcher import launcher_text

            return f"{launcher_text(profile)}# job {job_id}\n# command: {waiting_command(profile, command)}"
