"""The kinds of clusters: what each profile opens, and what it is asked to run."""

from __future__ import annotations

from cluster.jobs import ClusterJobs
from cluster.profiles import ClusterProfile, RayProfile


def open_cluster(profile: ClusterProfile) -> ClusterJobs:
    """Return the jobs of a cluster.

    Raises:
        ClusterError: If it cannot be reached from here.
    """
    if isinstance(profile, RayProfile):
        from cluster.ray_jobs import RayJobs

        return RayJobs(profile.address)
    from cluster.slurm_jobs import SlurmJobs

    return SlurmJobs(profile)


def job_text(profile: ClusterProfile, job_id: str, command: str) -> str:
    """Return what the cluster is asked to run, as text: the request, or the script."""
    if isinstance(profile, RayProfile):
        return f"# job {job_id} of {profile.address}\n# command: {command}"
    from cluster.slurm_jobs import SCRIPT, job_folder, slurm_script

    folder = job_folder(profile, job_id)
    return f"# sbatch {folder / SCRIPT}\n{slurm_script(profile, job_id, command, folder)}"
