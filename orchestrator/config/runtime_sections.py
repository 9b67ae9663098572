"""The sections of a config that do not change experts: resources, failures, limits, storage and tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from workers.data.validation import STRICT_CONFIG, NonNegativeInt, PositiveFloat, PositiveInt, setting_error

_LEAST_SHARE = 0.0001  # Ray counts CPUs and GPUs in ten-thousandths
Minutes = Annotated[float, Field(gt=0, le=1e7)]  # 19 years; a time-out of the operating system takes no million years
Hours = Annotated[float, Field(gt=0, le=1e6)]


class ResourceSettings(BaseModel):
    """Resources that the training of one expert reserves on the cluster: for each of its processes."""

    model_config = STRICT_CONFIG
    cpus_per_expert: PositiveFloat = Field(default=1.0, description="CPU cores.")
    gpus_per_expert: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        default="auto", description="0, 1 or a share of one GPU; auto: 1 if a node of the cluster has a GPU, else 0."
    )
    processes_per_expert: Literal["auto"] | PositiveInt = Field(
        default="auto",
        description="Processes that train an expert together, each with the CPUs and GPUs above, see `train.engine`; "
        "auto: 1, with ddp those that one node has room for, with deepspeed as few as have the memory.",
    )
    accelerator_type: str | None = Field(
        default=None, description="Type of GPU by Ray's name, such as H100; by default any."
    )
    node_labels: dict[str, str] = Field(default={}, description="Labels that a node must have to train experts.")
    max_parallel: PositiveInt | None = Field(
        default=None, description="Maximum number of parallel jobs; by default as many as the cluster can run."
    )
    experts_per_job: Literal["auto"] | PositiveInt = Field(
        default="auto", description="Experts that one job trains together on one base; auto is 1 without a GPU."
    )
    autoscaling: bool = Field(default=False, description="Wait for nodes that do not exist yet; requires max_parallel.")

    @model_validator(mode="after")
    def _check(self) -> ResourceSettings:
        for key in ("cpus_per_expert", "gpus_per_expert"):
            share = getattr(self, key)
            if share != "auto" and 0 < share < _LEAST_SHARE:
                what = f"Ray reserves no less than {_LEAST_SHARE}, and this is {share}"
                raise setting_error(what, key=(key,), fix=f"write {_LEAST_SHARE} or more")
        if self.autoscaling and not self.max_parallel:
            what = "autoscaling requires a maximum number of parallel jobs"
            raise setting_error(what, key=("autoscaling",), fix="set `max_parallel`")
        return self


class FailureSettings(BaseModel):
    """Retries after failures.

    A job that ran out of memory is retried once with half of what is in the model at once; one whose process dies again
    gets half too. A job that failed because of its GPU is retried on another one; a GPU on which two jobs in a row fail
    gets no more work. Jobs of a preempted node are always retried.
    """

    model_config = STRICT_CONFIG
    retries: NonNegativeInt = Field(
        default=3, description="Retries after system failures such as a dead worker process or a broken GPU."
    )
    code_retries: NonNegativeInt = Field(default=0, description="Retries after errors of the code or the data.")
    lost_retries: NonNegativeInt = Field(
        default=8, description="Retries after the loss of a node; preemption is retried without limit."
    )
    stop_after: NonNegativeInt = Field(
        default=3, description="Stop if the first N experts fail with the same error; 0 never stops."
    )
    stall_minutes: Minutes = Field(
        default=15.0, description="Minutes without a progress report after which a job is stopped and retried."
    )
    tracking_minutes: Minutes = Field(
        default=30.0, description="Minutes to wait for an MLflow server that does not answer."
    )


class LimitSettings(BaseModel):
    """Limits of one ``ttmoe run``. When one is reached, trainings save a checkpoint and the run ends."""

    model_config = STRICT_CONFIG
    hours: Hours | None = Field(default=None, description="Hours after which the run ends.")
    gpu_hours: Hours | None = Field(
        default=None, description="Hours in which GPUs are reserved for experts and router, summed over GPUs."
    )


class StorageSettings(BaseModel):
    """Folders for output and cache."""

    model_config = STRICT_CONFIG
    root: str = Field(default="runs", description="Folder of all output, relative to the working directory.")
    cache: str | None = Field(
        default=None, description="Folder of data that can be computed again; by default <root>/cache."
    )
    trunk_gb: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=20.0, description="Disk space for cached trunk states in GB; 0 computes them in every step."
    )


class TrackingSettings(BaseModel):
    """The MLflow store."""

    model_config = STRICT_CONFIG
    uri: str | None = Field(
        default=None,
        description="MLflow tracking URI; by default MLFLOW_TRACKING_URI, or else <root>/mlflow.db.",
    )
