"""Cluster profiles: how a job reaches a cluster, and where its storage and its MLflow server are."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cluster.cloud_profiles import AwsProfile, GcpProfile
from cluster.common_profile import CommonProfile, Count, Line
from cluster.kuberay_profile import KubeRayProfile


class LocalProfile(CommonProfile):
    """This machine: each job is a process of its own, on a Ray cluster that it starts itself."""

    kind: Literal["local"] = Field(description="This machine, without a cluster.")
    storage: str = Field(description="Folder of the jobs and of all output: the default of storage.root.")
    python: str = Field(default=sys.executable, description="Python that runs jobs; by default this one.")

    def is_on_cluster(self, path: str) -> bool:
        """Return True: jobs read all files where they are."""
        return True


class RayProfile(CommonProfile):
    """A running Ray cluster that takes jobs over HTTP."""

    kind: Literal["ray"] = Field(description="A running Ray cluster.")
    address: str = Field(description="Address of the cluster's dashboard, such as http://head:8265.")

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise ValueError("this is not the address of a dashboard; write http://HOST:8265")
        return address.rstrip("/")


class SlurmProfile(CommonProfile):
    """A Slurm cluster, on whose login node jobs are submitted. Each job starts a Ray cluster of its own."""

    kind: Literal["slurm"] = Field(description="A Slurm cluster; submit on its login node.")
    storage: str = Field(
        pattern=r'^/[^"%\n]*$', description="Folder that login node and nodes share: the default of storage.root."
    )
    nodes: Count = Field(default=1, description="Number of nodes.")
    cpus_per_node: Count = Field(description="CPU cores of each node.")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of each node.")
    memory: str | None = Field(
        default=None, pattern=r"^\d+[KMGT]?$", description="Memory of each node, such as 200G; by default Slurm's."
    )
    time: str = Field(description="Time limit, such as 04:00:00. A job that reaches it is queued again and continues.")
    partition: Line | None = Field(default=None, description="Partition; by default Slurm's.")
    account: Line | None = Field(default=None, description="Account; by default the user's.")
    grace: Annotated[int, Field(ge=10)] = Field(
        default=120, description="Seconds before the time limit at which the run saves its work and ends."
    )
    options: tuple[Line, ...] = Field(default=(), description="Further options of sbatch, such as --qos=high.")
    setup: tuple[Line, ...] = Field(
        default=(), description="Shell commands before anything else on the first node, such as module load cuda."
    )

    @field_validator("time")
    @classmethod
    def _check_time(cls, time: str) -> str:
        if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", time):
            raise ValueError("this is not a time limit of Slurm; write 04:00:00 or 1-12:00:00")
        return time


ClusterProfile = Annotated[
    LocalProfile | RayProfile | SlurmProfile | KubeRayProfile | AwsProfile | GcpProfile, Field(discriminator="kind")
]
