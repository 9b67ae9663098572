"""Cluster profiles of clouds: machines that Ray's cluster launcher starts, and that end after the last job."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from cluster.common_profile import CommonProfile, Count, Line

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Gigabytes = Annotated[int, Field(ge=20)]


class CloudProfile(CommonProfile):
    """What the profiles of clouds have in common."""

    kind: Literal["aws", "gcp"]
    storage: str = Field(
        pattern=r"^/[A-Za-z0-9_./-]+$", description="Folder that all machines share: the default of storage.root."
    )
    mount: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*$",
        description="NFS export to mount there (EFS, Filestore), such as 10.0.0.2:/share. Without it, the machines' "
        "image or `setup` must mount it.",
    )
    python: str = Field(
        default="python3",
        pattern=r"^[A-Za-z0-9_./+-]+$",
        description="Python of the environment on the machines that has Ray.",
    )
    head: _Name = Field(description="Machine type of the head, which runs the driver alone. It is no spot machine.")
    worker: _Name = Field(description="Machine type of the workers.")
    workers: Count = Field(default=1, description="Largest number of workers.")
    min_workers: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Workers that a job waits for; by default all. More of them need resources.autoscaling.",
    )
    gpus: int = Field(default=0, ge=0, description="GPUs of each worker.")
    spot: bool = Field(default=True, description="Whether workers are spot machines, which the cloud may take back.")
    disk: _Gigabytes = Field(default=200, description="Size of each machine's disk in GB.")
    user: _Name = Field(default="ubuntu", description="User of the image for SSH.")
    setup: tuple[Line, ...] = Field(
        default=(), description="Shell commands that install Ray, torch and the other packages on a new machine."
    )
    idle_minutes: Annotated[int, Field(ge=5)] = Field(
        default=15, description="Minutes after the last job until the whole cluster is ended."
    )

    @property
    def waited_workers(self) -> int:
        """Number of workers that are started at once, and that a job waits for."""
        return self.min_workers or self.workers

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.waited_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than the {self.workers} of `workers`")
        return self


class AwsProfile(CloudProfile):
    """Machines of Amazon EC2."""

    kind: Literal["aws"] = Field(description="A cluster on Amazon EC2, started for the job.")
    region: _Name = Field(description="Region, such as us-west-2.")
    zone: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+(,[a-z0-9-]+)*$")] | None = Field(
        default=None, description="Availability zones, comma-separated; by default any."
    )
    image: _Name | None = Field(default=None, description="AMI, such as ami-0123456789; by default Ray's.")


class GcpProfile(CloudProfile):
    """Machines of Google Compute Engine."""

    kind: Literal["gcp"] = Field(description="A cluster on Google Compute Engine, started for the job.")
    project: _Name = Field(description="Id of the project.")
    zone: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+-[a-z0-9]+-[a-z]$")] = Field(
        description="Zone, such as us-central1-a."
    )
    image: Annotated[str, StringConstraints(pattern=r"^projects/[^\s\"'%]+$")] = Field(
        description="Image of the disk, such as projects/P/global/images/family/F."
    )
    cpus: Count = Field(description="CPU cores of each worker, by which Ray knows how many it needs.")
    accelerator: _Name | None = Field(
        default=None,
        description="Type of the workers' GPUs, such as nvidia-tesla-t4, for machine types that bring none.",
    )

    @model_validator(mode="after")
    def _check_accelerator(self) -> Self:
        if self.accelerator and not self.gpus:
            raise ValueError("`accelerator` names a type of GPU; give their number for each worker as `gpus`")
        return self
