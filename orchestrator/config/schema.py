"""The schema of a config, and the settings of one task after its own overrides.

Checks that need the base (whether a shape fits a layer's width) or the data run when the plan is made. All other
checks are here, so that they take less than a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from cluster.profiles import ClusterProfile
from orchestrator.config.completion import OnEnd
from orchestrator.config.runtime_sections import (
    FailureSettings,
    LimitSettings,
    ResourceSettings,
    StorageSettings,
    TrackingSettings,
)
from orchestrator.config.search_settings import SearchSettings
from orchestrator.config.sections import (
    AdapterSettings,
    BaseSettings,
    HeadMode,
    NamedExpert,
    Overriding,
    Section,
)
from orchestrator.config.store_address import StoreAddress, find_store
from ttmoe.generating_kinds import GENERATING_KINDS
from workers.data.task import Task
from workers.data.validation import STRICT_CONFIG, PositiveInt, Seed, setting_error
from workers.training.settings import RouterSettings, TrainSettings


def _check_name(name: str) -> str:
    # No dots, because a dot separates library and task in the registry.
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", name):
        fix = "use up to 60 lower-case letters, digits, _ and -, and begin with a letter or digit"
        raise setting_error(f"{name!r} is not a valid name", fix=fix)
    return name


def _check_task_name(name: str) -> str:
    # <library>.router is the router's registered model, <library>.search an experiment; `unknown` is an answer.
    if name in ("router", "search", "unknown"):
        raise setting_error(f"{name!r} is a reserved name", fix="choose another name")
    return _check_name(name)


Slug = Annotated[str, AfterValidator(_check_name)]
TaskName = Annotated[str, AfterValidator(_check_task_name)]


def _merge(section: Section, override: Section) -> Section:
    """Return ``section`` with the fields that are set in ``override``.

    Both are validated already and no check spans several fields, so the result is not validated again.
    """
    return section.model_copy(update={key: getattr(override, key) for key in override.model_fields_set})


def _suggest_task(name: str, tasks: Iterable[str]) -> str:
    near = get_close_matches(name, tasks, 1)
    return f"did you mean `{near[0]}`?" if near else f"tasks: {', '.join(tasks)}"


class TaskEntry(Task):
    """A task with its own training, adapter and head settings; only the keys that are set override the library's."""

    model_config = STRICT_CONFIG
    train: Overriding[TrainSettings] = Field(
        default_factory=TrainSettings, description="Training settings that differ for this task."
    )
    adapter: Overriding[AdapterSettings] = Field(
        default_factory=AdapterSettings, description="Adapter settings that differ for this task."
    )
    head: HeadMode | None = Field(default=None, description="Head of this task, if it differs from the library's.")
    expert: NamedExpert | None = Field(
        default=None,
        description="Registered expert of this task, which is used as it is; by default one is trained, as `train`, "
        "`adapter` and `head` say.",
    )

    scorer: str | None = Field(
        default=None,
        description="Function that scores the texts of an expert, as package.module:function; called with each text "
        "and its answer when the expert has been trained. Its mean is the metric test.score.",
    )
    scorer_rows: PositiveInt = Field(default=200, description="Maximum number of test rows that `scorer` is given.")

    @model_validator(mode="after")
    def _check_scorer(self) -> TaskEntry:
        if self.scorer and self.kind not in GENERATING_KINDS:
            what = f"a task of kind {self.kind} generates no text to score"
            raise setting_error(what, key=("scorer",), fix="remove this setting")
        return self

    @model_validator(mode="after")
    def _check_expert(self) -> TaskEntry:
        if self.expert is None and self.routing_rows:
            what = "a task with routing_rows has no labels to train on"
            raise setting_error(what, key=("routing_rows",), fix="name its `expert`, or write `source` and `label`")
        return self


class Config(BaseModel):
    """A library: its base, its tasks, and the settings of experts, router and run."""

    model_config = STRICT_CONFIG
    library: Slug = Field(description="Name of the library in the registry.")
    seed: Seed = Field(default=0, description="Random seed.")
    base: BaseSettings = Field(description="The frozen base model.")
    adapter: AdapterSettings = Field(default_factory=AdapterSettings, description="Adapter of each expert.")
    head: HeadMode = Field(
        default="trained", description="Whether heads are trained, or frozen at their random initialization."
    )
    train: TrainSettings = Field(default_factory=TrainSettings, description="Training settings of the experts.")
    tasks: dict[TaskName, TaskEntry] = Field(description="Tasks by name; each task gets one expert.")
    router: RouterSettings = Field(default_factory=RouterSettings, description="Settings of the router.")
    search: SearchSettings | None = Field(default=None, description="Optional search over ranks and shapes.")
    resources: ResourceSettings = Field(
        default_factory=ResourceSettings, description="Resources that one expert reserves."
    )
    failures: FailureSettings = Field(default_factory=FailureSettings, description="Retries after failures.")
    limits: LimitSettings = Field(default_factory=LimitSettings, description="Limits of time and of GPU time.")
    storage: StorageSettings = Field(default_factory=StorageSettings, description="Folders for output and cache.")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="The MLflow store.")
    on_end: OnEnd | None = Field(
        default=None,
        description="Command, or http(s) URL, that is called with the result as JSON when a run or a search ends.",
    )
    clusters: dict[Slug, ClusterProfile] = Field(
        default_factory=dict, description="Clusters for `ttmoe submit`, by name."
    )

    @field_validator("tasks")
    @classmethod
    def _check_any_task(cls, tasks: dict[str, TaskEntry]) -> dict[str, TaskEntry]:
        if not tasks:
            raise setting_error(
                "a library needs at least one task", fix="add one, as in the config that `ttmoe init` writes"
            )
        return tasks

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.search:
            _check_searched_tasks(self.search, self.tasks)
        for name in self.router.require if isinstance(self.router.require, tuple) else ():
            if name not in self.tasks:
                raise setting_error(
                    f"no task is named {name!r}", key=("router", "require"), fix=_suggest_task(name, self.tasks)
                )
        _check_groups(self.router.groups, self.tasks)
        _check_shapes(self.adapter, ())
        for name, entry in self.tasks.items():
            if "shape" in entry.adapter.model_fields_set:
                _check_shapes(self.task_adapter(name), ("tasks", name))
            if entry.kind in GENERATING_KINDS:
                _check_no_head_settings(name, entry)
        return self

    def task_train(self, name: str) -> TrainSettings:
        """Return the training settings of a task with its overrides and the config's seed as the default."""
        train = _merge(self.train, self.tasks[name].train)
        return train if train.seed is not None else train.model_copy(update={"seed": self.seed})

    def task_adapter(self, name: str) -> AdapterSettings:
        """Return the adapter settings of a task with its overrides."""
        return _merge(self.adapter, self.tasks[name].adapter)

    def task_head(self, name: str) -> HeadMode:
        """Return whether the head of a task is trained or frozen."""
        return self.tasks[name].head or self.head

    @property
    def searched_tasks(self) -> tuple[str, ...]:
        """The tasks on which the search trains trials; empty without a search."""
        trained = [name for name, entry in self.tasks.items() if entry.expert is None]
        return self.search.task_names(trained) if self.search else ()

    def search_train(self, task: str) -> TrainSettings:
        """Return the training settings of a trial on a searched task, in one process.

        Raises:
            ValueError: If the config has no search.
        """
        if self.search is None:
            raise ValueError("the config has no search")
        return _merge(self.task_train(task), self.search.train).model_copy(
            update={"steps": self.search.steps, "engine": "torch"}
        )

    @property
    def cache(self) -> Path:
        """Folder of data that can be computed again."""
        return Path(self.storage.cache or Path(self.storage.root, "cache"))

    @property
    def store(self) -> StoreAddress:
        """The MLflow store."""
        return find_store(config_uri=self.tracking.uri, config_root=Path(self.storage.root))


def _check_groups(groups: Iterable[Sequence[str]], tasks: Mapping[str, TaskEntry]) -> None:
    seen = set[str]()
    for number, group in enumerate(groups):
        key = ("router", "groups", str(number))
        for name in group:
            if name not in tasks:
                raise setting_error(f"no task is named {name!r}", key=key, fix=_suggest_task(name, tasks))
            if name in seen:
                raise setting_error(f"task {name!r} stands twice", key=key, fix="name each task in one group, once")
            seen.add(name)
        kinds = sorted({tasks[name].kind for name in group} - {"text", "pair"})
        if len(group) < 2:
            raise setting_error("a group needs two tasks or more", key=key, fix="name its tasks, or leave it out")
        if not GENERATING_KINDS.isdisjoint(kinds):
            raise setting_error(
                "generated texts cannot be mixed", key=key, fix="group tasks with labels or with options"
            )
        if kinds and any(tasks[name].kind != "choice" for name in group):
            raise setting_error(
                "labels and options cannot be mixed", key=key, fix="group tasks of one of the two kinds"
            )


def _check_searched_tasks(search: SearchSettings, tasks: Mapping[str, TaskEntry]) -> None:
    """Refuse a search on tasks that do not exist, or over heads where a task has none."""
    key = "task" if search.task else "tasks"
    if not any(search.task_names([name for name, entry in tasks.items() if entry.expert is None])):
        what = "every task takes its expert from the registry, so there is nothing to search for"
        raise setting_error(what, key=("search",), fix="remove this section, or the `expert` of a task")
    for name in search.task_names(tasks):
        if name not in tasks:
            raise setting_error(f"no task is named {name!r}", key=("search", key), fix=_suggest_task(name, tasks))
        if tasks[name].expert and search.tasks != "all":
            what = f"task {name!r} takes its expert from the registry, so nothing is searched for it"
            raise setting_error(what, key=("search", key), fix="name other tasks, or remove its `expert`")
        if tasks[name].kind in GENERATING_KINDS and search.space and search.space.head:
            what = f"task {name!r} is of kind {tasks[name].kind} and has no head"
            raise setting_error(what, key=("search", "space", "head"), fix="remove this setting")


def _check_shapes(adapter: AdapterSettings, key: tuple[str, ...]) -> None:
    """Refuse a shape for a role that is not a target, because it would have no effect."""
    for role in adapter.shape if isinstance(adapter.shape, dict) else ():
        if role not in adapter.targets:
            raise setting_error(
                f"a shape is given for {role!r}, which is not a target",
                key=(*key, "adapter", "shape", role),
                fix=f"targets: {', '.join(adapter.targets)}",
            )


def _check_no_head_settings(name: str, entry: TaskEntry) -> None:
    """Refuse settings of the head for a task that generates text, because they would have no effect."""
    head_keys = entry.train.model_fields_set & {"head_lr", "head_dropout", "label_smoothing"}
    keys = [("train", key) for key in sorted(head_keys)] + ([("head",)] if entry.head else [])
    if keys:
        what = f"a task of kind {entry.kind} has no head"
        raise setting_error(what, key=("tasks", name, *keys[0]), fix="remove this setting")
