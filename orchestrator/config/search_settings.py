"""The section `search` of a config: which points are tried, how many, and how the best ones are found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from orchestrator.config.runtime_sections import Minutes
from orchestrator.config.sections import HeadMode, LayerRange, Overriding, Targets
from workers.data.validation import (
    LARGEST_COUNT,
    STRICT_CONFIG,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    setting_error,
)
from workers.training.settings import TrainSettings

Objective = Literal["accuracy", "parameters"]
Cores = Annotated[int, Field(ge=2, le=64)]  # a width of 32 bits has no more factors, on either side


def _new(default: Any, description: str, **rules: Any) -> Any:
    """Return a field that version 0.1.0 did not have: at its default, the hash of a search does not contain it."""
    return Field(default=default, description=description, json_schema_extra={"neutral": default}, **rules)


class SpaceSettings(BaseModel):
    """Further choices of each trial; each key lists the options for the setting of the same name."""

    model_config = STRICT_CONFIG
    shapes: Literal["balanced", "all"] = Field(
        default="balanced",
        description="Shapes for each number of factors: the most balanced one, or all factors in every order.",
    )
    per_role: bool = Field(
        default=False, description="Choose rank and shape for each role (such as q and v) instead of one for all."
    )
    targets: tuple[Targets, ...] | None = Field(
        default=None, min_length=1, description="Options for adapter.targets, such as [[q, v], [q, v, o]]."
    )
    layers: tuple[LayerRange, ...] | None = Field(
        default=None, min_length=1, description="Options for adapter.layers, such as [all, 2-, 4-]."
    )
    alpha: tuple[PositiveFloat, ...] | None = Field(
        default=None, min_length=1, description="Options for adapter.alpha."
    )
    lr: Literal["auto", "keep"] | tuple[PositiveFloat, ...] = Field(
        default="auto",
        min_length=1,
        description="Learning rate of the adapter: auto (train.lr at adapter.rank, and lower at higher ranks, with the "
        "rank to the power of 3/4), keep (train.lr), or options.",
    )
    head: tuple[HeadMode, ...] | None = Field(default=None, min_length=1, description="Options for the head.")


class BudgetSettings(BaseModel):
    """Limits of all training that a search does; a search that reaches one ends with what it has."""

    model_config = STRICT_CONFIG
    trials: PositiveInt | None = Field(
        default=None, description="Method truncate: maximum number of ranks that are trained because their cut is poor."
    )
    steps: PositiveInt | None = Field(default=None, description="Maximum number of optimizer steps of all trials.")
    minutes: Minutes | None = Field(default=None, description="Time after which no further trial is started.")

    @model_validator(mode="after")
    def _check(self) -> BudgetSettings:
        if not any((self.trials, self.steps, self.minutes)):
            raise setting_error("a budget needs a limit", fix="set trials, steps or minutes, or remove this section")
        return self


class RungSettings(BaseModel):
    """Successive halving: trials are compared at rungs, and only the best of each rung are trained further."""

    model_config = STRICT_CONFIG
    first: PositiveInt = Field(description="Optimizer steps of the first rung.")
    factor: Annotated[int, Field(ge=2, le=LARGEST_COUNT)] = Field(
        default=3, description="A rung has so many times the steps of the one before, and keeps one of so many trials."
    )


class SearchSettings(BaseModel):
    """Settings of the search over TT ranks and shapes."""

    model_config = STRICT_CONFIG
    task: str | None = Field(default=None, description="Task on which the trials are trained.")
    tasks: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = _new(
        None,
        "Several tasks instead of one, each with trials of its own: a list, or all. What is recommended for one is "
        "tried on the others, so that one point can be recommended for all.",
    )
    method: Literal["truncate", "tpe", "random", "grid"] | None = _new(
        None,
        "truncate: train the highest rank and cut it to the others; tpe: a sampler that learns from earlier trials; "
        "random; grid: points in their order. By default truncate for `ttmoe tune` and tpe for `ttmoe run`.",
    )
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = _new(
        ("accuracy", "parameters"),
        "What the search optimizes: accuracy against parameters, or [accuracy] alone.",
    )
    trials: PositiveInt = Field(default=8, description="Number of trials of a task, except those of a cut.")
    ranks: tuple[PositiveInt, ...] = Field(default=(2, 4, 8, 16), min_length=1, description="Ranks to search.")
    cores: tuple[Cores, Cores] = Field(default=(4, 6), description="Minimum and maximum number of cores of a shape.")
    space: SpaceSettings | None = _new(
        None, "Choices beyond ranks and cores. Without this section, trials have the training settings as they are."
    )
    max_parameters: PositiveInt | None = _new(
        None, "Maximum number of parameters of the adapter, without the head; larger points are not tried."
    )
    steps: PositiveInt = Field(default=100, description="Optimizer steps of a trial.")
    rungs: RungSettings | None = _new(None, "Stop poor trials early; by default every trial is trained to its end.")
    budget: BudgetSettings | None = _new(None, "Limits of all training that the search does.")
    confirm: NonNegativeInt = _new(
        0, "Further seeds with which the best trials are repeated before a winner is named; 0: none."
    )
    finalists: PositiveInt = _new(4, "Maximum number of trials of a task that are repeated with further seeds.")
    references: tuple[PositiveInt, ...] = _new(
        (), "Ranks of plain LoRA adapters on the same layers that are trained for comparison."
    )
    accuracy_within: Fraction = _new(
        0.005,
        "The winner is the smallest trial whose accuracy is at most this far below the best one; of trials with "
        "several seeds, its mean loss is also within one standard error of the lowest.",
    )
    max_parallel: PositiveInt | None = Field(
        default=None, description="Maximum number of parallel trials; by default all that fit."
    )
    trials_per_job: Literal["auto"] | PositiveInt = _new(
        "auto", "Trials of a task that are trained together on one base; auto: few enough that all workers have some."
    )
    warm_start: bool = _new(True, "Let the sampler learn from earlier searches of this library on the same base.")
    train: Overriding[TrainSettings] = Field(
        default_factory=TrainSettings, description="Training settings that differ for trials."
    )
    seed: Seed = Field(default=0, description="Random seed of the sampler.")

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        self._check_tasks()
        self._check_method()
        if "accuracy" not in self.objectives or len(set(self.objectives)) < len(self.objectives):
            what = "the objectives must include accuracy, and each once"
            raise setting_error(what, key=("objectives",), fix="write [accuracy, parameters] or [accuracy]")
        if self.cores[0] > self.cores[1]:
            what = "the minimum number of cores is greater than the maximum"
            raise setting_error(what, key=("cores",), fix=f"write {list(self.cores[::-1])}")
        if "steps" in self.train.model_fields_set:
            what = "the steps of a trial are set elsewhere"
            raise setting_error(what, key=("train", "steps"), fix="set `search.steps`")
        if self.rungs and self.rungs.first >= self.steps:
            what = f"the first rung must have fewer steps than a trial, which has {self.steps}"
            raise setting_error(what, key=("rungs", "first"), fix=f"write {max(1, self.steps // 9)}")
        return self

    def _check_tasks(self) -> None:
        if (self.task is None) == (self.tasks is None):
            given = "both are given" if self.task else "neither is given"
            raise setting_error(f"a search needs either task or tasks; {given}", fix="keep or add one of them")
        if isinstance(self.tasks, tuple) and len(set(self.tasks)) < len(self.tasks):
            raise setting_error("a task is listed twice", key=("tasks",), fix="list each task once")

    def _check_method(self) -> None:
        if self.method == "truncate" and self.rungs:
            what = "method truncate has no rungs: it trains one expert, to its end, and cuts it"
            raise setting_error(what, key=("rungs",), fix="remove it, or choose another method")
        if self.method == "truncate" and self.space and (chosen := self.space.model_fields_set - {"lr"}):
            what = f"method truncate chooses the rank alone, and not {', '.join(sorted(chosen))}"
            raise setting_error(what, key=("space",), fix="remove this section, or choose another method")
        if self.method not in ("truncate", None) and self.budget and self.budget.trials:
            what = f"method {self.method} has its number of trials elsewhere"
            raise setting_error(what, key=("budget", "trials"), fix="set `search.trials`")

    @property
    def rung_steps(self) -> tuple[int, ...]:
        """The steps of all rungs: those of the first one, then so many times as many, and the whole training last."""
        rungs, step = [], self.rungs.first if self.rungs else self.steps
        while self.rungs and step < self.steps:
            rungs.append(step)
            step *= self.rungs.factor
        return (*rungs, self.steps)

    def task_names(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """Return the searched tasks, of a library with these ``tasks``."""
        if self.task is not None:
            return (self.task,)
        return self.tasks if isinstance(self.tasks, tuple) else tuple(tasks)
