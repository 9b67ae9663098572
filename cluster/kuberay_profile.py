"""The profile of a Kubernetes cluster with KubeRay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from cluster.common_profile import CommonProfile, Count, Line, VariableName

ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*([KMGT]i?)?$")]


class Toleration(BaseModel):
    """A taint of nodes that pods tolerate, as Kubernetes writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: Line | None = Field(default=None, description="Key of the taint; by default every key.")
    operator: Literal["Equal", "Exists"] = Field(default="Equal", description="How the value is compared.")
    value: Line | None = Field(default=None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; by default every effect."
    )


class KubeRayProfile(CommonProfile):
    """A Kubernetes cluster with KubeRay. Each job is a RayJob, which starts a Ray cluster of its own."""

    kind: Literal["kuberay"] = Field(description="A Kubernetes cluster with KubeRay 1.5.1 or newer.")
    storage: str = Field(description="Folder at which the pods see the claim: the default of storage.root.")
    claim: ObjectName = Field(description="PersistentVolumeClaim (ReadWriteMany) that holds the storage.")
    image: Annotated[Line, StringConstraints(min_length=1)] = Field(
        description="Image of all pods, with this version of ttmoe and Ray; `make image` builds one."
    )
    context: Line | None = Field(default=None, description="Context of kubectl; by default the current one.")
    namespace: ObjectName | None = Field(default=None, description="Namespace; by default that of the context.")
    workers: Count = Field(default=1, description="Number of worker pods.")
    cpus: Count = Field(description="CPU cores of each worker.")
    memory: Quantity = Field(description="Memory of each worker, such as 64Gi.")
    gpus: int = Field(default=0, ge=0, description="GPUs of each worker.")
    gpu_resource: Line = Field(default="nvidia.com/gpu", description="Kubernetes' name of a GPU.")
    node_selector: dict[str, Line] = Field(default_factory=dict, description="Labels of the workers' nodes.")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="Taints that workers tolerate.")
    head_cpus: Count = Field(default=2, description="CPU cores of the head, which plans and records.")
    head_memory: Quantity = Field(default="8Gi", description="Memory of the head.")
    head_node_selector: dict[str, Line] = Field(default_factory=dict, description="Labels of the head's node.")
    head_tolerations: tuple[Toleration, ...] = Field(default=(), description="Taints that the head tolerates.")
    shared_memory: Quantity | None = Field(
        default=None, description="Largest size of /dev/shm, a part of the pod's memory; by default all of it."
    )
    interface: Annotated[str, StringConstraints(pattern=r"^[\w.,=^-]+$")] = Field(
        default="eth0", description="Network interface of GLOO and NCCL."
    )
    secret: ObjectName | None = Field(
        default=None, description="Secret whose keys become environment variables, such as HF_TOKEN."
    )
    service_account: ObjectName | None = Field(default=None, description="Service account of all pods.")
    image_pull_secrets: tuple[ObjectName, ...] = Field(default=(), description="Secrets that allow to pull the image.")
    priority_class: ObjectName | None = Field(default=None, description="Priority class of all pods.")
    queue: ObjectName | None = Field(default=None, description="Local queue of Kueue, which starts the job.")
    hours: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Time limit of the job in hours.")
    grace: Annotated[int, Field(ge=10)] = Field(
        default=120, description="Seconds in which a run that is stopped saves its work."
    )
    retries: int = Field(default=3, ge=0, description="How often a run continues after its head was lost.")

    @field_validator("env")
    @classmethod
    def _check_env(cls, env: tuple[VariableName, ...]) -> tuple[VariableName, ...]:
        if env:
            raise ValueError("a manifest would show the values; put them into a Secret, and give its name as `secret`")
        return env
