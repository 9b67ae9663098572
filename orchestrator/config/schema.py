"""What a config may say as a whole, and what holds for one task after its own overrides.

Checks that need the base (does a shape fit a layer's width) or the data are made when the run is planned;
all others are made here, so that they are answered within a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, field_validator, model_validator

from orchestrator.config.sections import AdapterSettings, BaseSettings, HeadMode
from workers.data.columns import STRICT_CONFIG, setting_error
from workers.data.task import Task
from workers.training.settings import Count, NonNegativeFloat, PositiveFloat, RouterSettings, TrainSettings

Part = TypeVar("Part", bound=BaseModel)


def _only_what_was_given(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_unset=True)


# A section that is laid over another: written out, it must not gain keys that it was not given.
Overriding = Annotated[Part, PlainSerializer(_only_what_was_given)]


def _slug(name: str) -> str:
    # No dot: it separates library and task in the registry.
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", name):
        fix = "use up to 60 lower-case letters, digits, _ and -, and begin with a letter or digit"
        raise setting_error(f"{name!r} cannot be a name", fix=fix)
    return name


def _task_name(name: str) -> str:
    # <library>.router is the router's registered model, <library>.search an experiment; `unknown` is an answer.
    if name in ("router", "search", "unknown"):
        raise setting_error(f"{name!r} is a name that the library uses itself", fix="choose another name")
    return _slug(name)


Slug = Annotated[str, AfterValidator(_slug)]
TaskName = Annotated[str, AfterValidator(_task_name)]


def _merged(whole: Part, part: Part) -> Part:
    """``whole`` with the fields that ``part`` was given: both are validated, no check spans fields."""
    return whole.model_copy(update={key: getattr(part, key) for key in part.model_fields_set})


def _near(name: str, tasks: Iterable[str]) -> str:
    near = get_close_matches(name, tasks, 1)
    return f"did you mean `{near[0]}`?" if near else f"tasks: {', '.join(tasks)}"


class TaskEntry(Task):
    """A task, and what it wants otherwise than the library: only the keys written here override."""

    model_config = STRICT_CONFIG
    train: Overriding[TrainSettings] = Field(
        default_factory=TrainSettings, description="This task's own training settings."
    )
    adapter: Overriding[AdapterSettings] = Field(
        default_factory=AdapterSettings, description="This task's own adapter settings."
    )
    head: HeadMode | None = Field(default=None, description="This task's head, where it differs.")


class SearchSettings(BaseModel):
    """A search over TT ranks and shapes of one task."""

    model_config = STRICT_CONFIG
    task: str = Field(description="The task that is searched on.")
    trials: Count = Field(default=8, description="Trials in all.")
    ranks: tuple[Count, ...] = Field(default=(2, 4, 8, 16), min_length=1, description="Ranks to choose from.")
    cores: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = Field(
        default=(4, 6), description="The fewest and the most cores of a shape."
    )
    steps: Count = Field(default=100, description="Optimiser steps of a trial.")
    max_parallel: Count | None = Field(default=None, description="Trials at a time; by default all that fit.")
    train: Overriding[TrainSettings] = Field(
        default_factory=TrainSettings, description="The trials' own training settings."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler.")

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        if self.cores[0] > self.cores[1]:
            raise setting_error("the fewest cores come first", key=("cores",), fix=f"write {list(self.cores[::-1])}")
        if "steps" in self.train.model_fields_set:
            raise setting_error("a trial's steps are said once", key=("train", "steps"), fix="use `search.steps`")
        return self


class ResourceSettings(BaseModel):
    """What one expert's training reserves on the cluster."""

    model_config = STRICT_CONFIG
    cpus_per_expert: PositiveFloat = Field(default=1.0, description="Processor cores.")
    gpus_per_expert: Literal["auto"] | NonNegativeFloat = Field(default=0.0, description="GPUs, or auto.")
    max_parallel: Count | None = Field(default=None, description="Jobs at a time; else all that fit.")
    experts_per_job: Literal["auto"] | Count = Field(
        default="auto", description="Experts that one job trains together on its base; auto is 1 without a GPU."
    )
    autoscaling: bool = Field(default=False, description="Wait for nodes that are not there yet; needs max_parallel.")

    @model_validator(mode="after")
    def _check(self) -> ResourceSettings:
        if self.autoscaling and not self.max_parallel:
            raise setting_error(
                "a cluster that grows has no end", key=("autoscaling",), fix="say `max_parallel`: jobs at a time"
            )
        return self

    @property
    def gpus(self) -> float:
        """GPUs for one expert: what is written, or with ``auto`` one where there is one."""
        if self.gpus_per_expert != "auto":
            return self.gpus_per_expert
        import torch

        return float(torch.cuda.is_available())


class FailureSettings(BaseModel):
    """What is done about work that fails. A lost node is always replaced; a full memory is tried once more, halved."""

    model_config = STRICT_CONFIG
    retries: int = Field(default=3, ge=0, description="Retries after the system failed: a dead process, a lost disk.")
    code_retries: int = Field(default=0, ge=0, description="Retries after the code or the data failed.")
    stop_after: int = Field(default=3, ge=0, description="Stop when the first N experts fail alike; 0 never does.")
    stall_minutes: PositiveFloat = Field(
        default=15.0, description="Without a sign of life for so long, a job is replaced."
    )
    tracking_minutes: PositiveFloat = Field(
        default=30.0, description="How long to wait for an MLflow server that is away."
    )


class StorageSettings(BaseModel):
    """Where a run writes."""

    model_config = STRICT_CONFIG
    root: str = Field(default="runs", description="The folder of all output, seen from where you type.")
    cache: str | None = Field(default=None, description="What can be made again; by default <root>/cache.")
    trunk_gb: NonNegativeFloat = Field(
        default=20.0, description="Disk for cached trunk states, in GB; 0 computes them in every step."
    )


class TrackingSettings(BaseModel):
    """The MLflow store."""

    model_config = STRICT_CONFIG
    uri: str | None = Field(default=None, description="By default sqlite:///<root>/mlflow.db.")


class Config(BaseModel):
    """A library: its base, its tasks, and how experts and router are made."""

    model_config = STRICT_CONFIG
    library: Slug = Field(description="The library's name in the registry.")
    seed: int = Field(default=0, ge=0, description="Seed of all that is drawn at random.")
    base: BaseSettings = Field(description="The frozen language model.")
    adapter: AdapterSettings = Field(default_factory=AdapterSettings, description="What an expert adds to the base.")
    head: HeadMode = Field(default="trained", description="Trained, or left at its random start.")
    train: TrainSettings = Field(default_factory=TrainSettings, description="How experts are trained.")
    tasks: dict[TaskName, TaskEntry] = Field(description="The tasks by name; each becomes one expert.")
    router: RouterSettings = Field(default_factory=RouterSettings, description="How the router is made.")
    search: SearchSettings | None = Field(default=None, description="A search over ranks and shapes.")
    resources: ResourceSettings = Field(default_factory=ResourceSettings, description="What one expert reserves.")
    failures: FailureSettings = Field(
        default_factory=FailureSettings, description="What is done about work that fails."
    )
    storage: StorageSettings = Field(default_factory=StorageSettings, description="Where a run writes.")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="The MLflow store.")

    @field_validator("tasks")
    @classmethod
    def _check_any_task(cls, tasks: dict[str, TaskEntry]) -> dict[str, TaskEntry]:
        if not tasks:
            raise setting_error("a library needs at least one task", fix="`ttmoe init` writes a config with one")
        return tasks

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.search and self.search.task not in self.tasks:
            fix = _near(self.search.task, self.tasks)
            raise setting_error(f"there is no task {self.search.task!r}", key=("search", "task"), fix=fix)
        for name in self.router.require if isinstance(self.router.require, tuple) else ():
            if name not in self.tasks:
                raise setting_error(
                    f"there is no task {name!r}", key=("router", "require"), fix=_near(name, self.tasks)
                )
        self._check_shaped_roles(self.adapter, ())
        for name, entry in self.tasks.items():
            if "shape" in entry.adapter.model_fields_set:
                self._check_shaped_roles(self.task_adapter(name), ("tasks", name))
            if entry.kind == "generate":
                _check_headless(name, entry)
        return self

    def _check_shaped_roles(self, adapter: AdapterSettings, key: tuple[str, ...]) -> None:
        """A shape for a role that is not a target would be ignored in silence."""
        for role in adapter.shape if isinstance(adapter.shape, dict) else ():
            if role not in adapter.targets:
                raise setting_error(
                    "a shape for what is not a target",
                    key=(*key, "adapter", "shape", role),
                    fix=f"targets: {', '.join(adapter.targets)}",
                )

    def task_train(self, name: str) -> TrainSettings:
        """The training settings of task ``name``, its overrides merged in and the seed filled in."""
        train = _merged(self.train, self.tasks[name].train)
        return train if train.seed is not None else train.model_copy(update={"seed": self.seed})

    def task_adapter(self, name: str) -> AdapterSettings:
        """The adapter settings of task ``name``, its overrides merged in."""
        return _merged(self.adapter, self.tasks[name].adapter)

    def task_head(self, name: str) -> HeadMode:
        """Whether the head of task ``name`` is trained or frozen."""
        return self.tasks[name].head or self.head

    def search_train(self) -> TrainSettings:
        """The training settings of a trial. Raises ValueError without a `search` section."""
        if self.search is None:
            raise ValueError("the config has no search")
        return _merged(self.task_train(self.search.task), self.search.train).model_copy(
            update={"steps": self.search.steps}
        )

    @property
    def cache(self) -> Path:
        """The folder of what can be made again."""
        return Path(self.storage.cache or Path(self.storage.root, "cache"))

    @property
    def tracking_uri(self) -> str:
        """The MLflow store's address."""
        return self.tracking.uri or store_uri(Path(self.storage.root))


def _check_headless(name: str, entry: TaskEntry) -> None:
    """A setting of the head would be ignored in silence where there is none."""
    of_training = entry.train.model_fields_set & {"head_lr", "head_dropout", "label_smoothing"}
    keys = [("train", each) for each in sorted(of_training)] + ([("head",)] if entry.head else [])
    if keys:
        raise setting_error(
            "a task that writes has no head", key=("tasks", name, *keys[0]), fix="leave this setting out"
        )


def store_uri(root: Path) -> str:
    """The address of the MLflow store that lies in a storage root."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"
