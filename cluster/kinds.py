"""The kinds of clusters: what each profile opens, and what it is asked to run."""

from __future__ import annotations

from cluster.job_folders import SCRIPT, JobFolder
from cluster.jobs import ClusterJobs
from cluster.profiles import ClusterProfile, LocalProfile, RayProfile


def open_cluster(profile: ClusterProfile) -> ClusterJobs:
    """Return the jobs of a cluster.

    Raises:
        ClusterError: If it cannot be reached from here.
    """
    if isinstance(profile, RayProfile):
        from cluster.ray_jobs import RayJobs

        return RayJobs(profile.address)
    if isinstance(profile, LocalProfile):
        from cluster.local_jobs import LocalJobs

        return LocalJobs(profile)
    from cluster.slurm_jobs import SlurmJobs

    return SlurmJobs(profile)


def job_text(profile: ClusterProfile, job_id: str, command: str) -> str:
    """Return what the cluster is asked to run, as text: the request, or the script."""
    if isinstance(profile, RayProfile):
        return f"# job {job_id} of {profile.address}\n# command: {command}"
    if isinstance(profile, LocalProfile):
        return f"# job {job_id} of this machine\n# command: {command}"
    from cluster.slurm_jobs import slurm_script

    return f"# sbatch {JobFolder.of(profile.storage, job_id).path / SCRIPT}\n{slurm_script(profile, job_id, command)}"
