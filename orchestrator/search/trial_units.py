"""The trials of a search as work units of the worker pool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from orchestrator.plan.choosing import Point
from orchestrator.plan.expert_plan import expert_spec
from orchestrator.plan.identity import spec_hash
from orchestrator.plan.planning import Plan
from orchestrator.plan.space import PointSettings
from orchestrator.pool.less_memory import with_half_micro_batch
from orchestrator.pool.work_units import LOG_FILE, WorkUnit, run_jointly
from orchestrator.search.trial import Origin, Trial
from ttmoe.adapter import count_parameters, plan_groups
from ttmoe.base import empty_body
from workers.progress import ProgressCallback
from workers.recipes import RECIPES
from workers.training.settings import MEMORY_ONLY
from workers.tuning.cutting_job import run_cutting
from workers.tuning.distillation import most_distillation_steps
from workers.tuning.members import CuttingJob, CuttingResult
from workers.tuning.trial_job import TrialJob, run_trials

# Learning rate of LoRA over that of a tensor train: 3e-3 and 5e-3 were the best on two tasks of MiniLM.
_LORA_LR = 0.6


class TrialSpace(Protocol):
    """What trials need of a space."""

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Return the options of every choice by its name."""

    def is_valid(self, point: Point) -> bool:
        """Return whether a point is one of this space."""

    def settings(self, point: Point) -> PointSettings:
        """Return what a point trains."""


@dataclass(frozen=True)
class TaskTrials:
    """Makes the trials of one task, and their jobs.

    Attributes:
        plan: The plan.
        task: Name of the task.
        space: Space of the task's trials.
        rungs: Steps of the rungs; the last one is the whole training.
        folder: Work folder of the task's trials.
    """

    plan: Plan
    task: str
    space: TrialSpace
    rungs: tuple[int, ...]
    folder: Path

    @cached_property
    def context(self) -> str:
        """Hash of what all trials of the task have in common, see ``Trial``."""
        job = self.plan.experts[self.task].job
        train = self.plan.config.search_train(self.task).model_dump(exclude={"lr", "seed", *MEMORY_ONLY})
        common = {"base": self.plan.base.identity(), "data": job.data.fingerprint, "train": train}
        if template := self.plan.experts[self.task].spec.get("chat_template"):
            common["chat_template"] = template
        return spec_hash(common)[:16]

    def make(self, number: int, point: Point, origin: Origin, seed: int = 0) -> Trial:
        """Return a new trial."""
        settings = self._settings(point, seed)
        return Trial(
            self.task,
            number,
            point,
            self._spec_hash(settings, origin),
            settings.parameters,
            origin,
            seed,
            self.context,
            _describe(settings, point),
        )

    def key(self, point: Point) -> str | None:
        """Return the spec hash of a sampled trial of a point; None for a point that is not valid."""
        return self._spec_hash(self._settings(point, 0), "sampled") if self.space.is_valid(point) else None

    def makes(self, trial: Trial) -> bool:
        """Return whether a trial of an earlier search would be made by this one, with the same result."""
        if not self.space.is_valid(trial.point):
            return False
        return self.make(trial.number, trial.point, trial.origin, trial.seed).spec_hash == trial.spec_hash

    def job(self, trial: Trial, rung: int) -> TrialJob:
        """Return the job that trains a trial up to a rung."""
        settings, base_job = self._settings(trial.point, trial.seed), self.plan.experts[self.task].job
        expert = replace(
            base_job,
            task=trial.key,
            adapter=settings.adapter,
            train=settings.train.with_memory_of(base_job.train, self.plan.processes, self.plan.base.max_length),
            head=settings.head,
            spec_hash=trial.spec_hash,
            parameters=settings.parameters,
            folder=str(self.folder / trial.spec_hash[:16]),
            trainings=max(2, self.plan.config.search.trials if self.plan.config.search else 2),
        )
        return TrialJob(expert, rung)

    def config_sections(self, point: Point) -> dict[str, Any]:
        """Return the sections of a task in a config that make its expert one of this point."""
        settings, task = self.space.settings(point), self.plan.experts[self.task].job
        adapter: dict[str, Any] = {"method": "tt", "rank": settings.adapter.rank, "shape": settings.adapter.shape}
        if settings.adapter.alpha != task.adapter.alpha:
            adapter["alpha"] = settings.adapter.alpha
        if settings.adapter.targets != task.adapter.targets:
            adapter["targets"] = list(settings.adapter.targets)
        if "layers" in point:
            adapter["layers"] = point["layers"]
        sections: dict[str, Any] = {"adapter": adapter}
        if settings.train.lr != task.train.lr:
            sections["train"] = {"lr": settings.train.lr}
        return sections | ({"head": settings.head} if settings.head != task.head else {})

    def remove_files(self, trial: Trial) -> None:
        """Delete the checkpoints of a trial that will not be continued."""
        self.job(trial, trial.steps).expert.checkpoints.remove()

    def _settings(self, point: Point, seed: int) -> PointSettings:
        settings = self._reference(point["lora"]) if "lora" in point else self.space.settings(point)
        if not seed:
            return settings
        train = settings.train
        return replace(settings, train=train.model_copy(update={"seed": (train.seed or 0) + seed}))

    def _reference(self, rank: int) -> PointSettings:
        """Return a plain LoRA adapter on the layers of the task's own: with a scaling of 1, as is common."""
        job, train = self.plan.experts[self.task].job, self.plan.config.search_train(self.task)
        adapter = replace(job.adapter, method="lora", rank=rank, alpha=float(rank), shape="auto")
        groups = plan_groups(empty_body(self.plan.base), adapter)
        train = train.model_copy(update={"lr": _LORA_LR * train.lr})
        return PointSettings(adapter, train, job.head, groups, count_parameters(groups))

    def _spec_hash(self, settings: PointSettings, origin: Origin) -> str:
        """Return the hash of what decides a trial's result. The rungs are part of it: it is evaluated at each.

        A cut has that of a training of its point, and how it is cut: its parent follows from the space.
        """
        data = self.plan.experts[self.task].job.data
        shapes = {group.role: str(group.method) for group in settings.groups}
        spec = expert_spec(self.plan.base, settings.adapter, shapes, data, settings.train, settings.head)
        rungs = self.rungs[:-1] if origin == "sampled" else ()
        cut = {"cut": self.space.choices()["rank"], "cutting": RECIPES["cut"]} if origin == "cut" else {}
        return spec_hash(spec | ({"rungs": rungs} if rungs else {}) | cut)


def _describe(settings: PointSettings, point: Point) -> dict[str, Any]:
    """Return what tables and MLflow show of a point: its rank and shapes, and its further choices."""
    shapes = {group.role: str(group.method).removeprefix("tt:") for group in settings.groups}
    if settings.adapter.method == "lora":
        return {"rank": settings.adapter.rank, "factors": "LoRA", "shapes": json.dumps(shapes), "lr": settings.train.lr}
    factors = {
        role: "+".join(str(side.count("x") + 1) for side in shape.split("@")[0].split("|"))
        for role, shape in shapes.items()
    }
    same = len(set(factors.values())) == 1
    described = {
        "rank": settings.adapter.rank,
        "factors": next(iter(factors.values())) if same else ", ".join(f"{r} {f}" for r, f in factors.items()),
        "shapes": json.dumps(shapes),
        "lr": settings.train.lr,
    }
    return described | {key: value for key, value in point.items() if key in ("alpha", "head", "targets", "layers")}


def make_unit(jobs: Sequence[TrialJob]) -> WorkUnit:
    """Return the unit in which trials of one task are trained together; it logs to the folder of the first."""
    log = Path(jobs[0].expert.folder, LOG_FILE)
    return WorkUnit(partial(run_jointly, run_trials), {job.expert.task: job for job in jobs}, log)


def make_cutting_unit(parent: TrialJob, ranks: Sequence[int]) -> WorkUnit:
    """Return the unit that trains a parent and cuts it to these ranks; they are distilled for a short time."""
    expert = parent.expert
    job = CuttingJob(expert, tuple(ranks), distill_steps=most_distillation_steps(expert.train.steps))
    return WorkUnit(partial(run_jointly, _run_cuttings), {expert.task: job}, Path(expert.folder, LOG_FILE))


def _run_cuttings(jobs: Sequence[CuttingJob], report: ProgressCallback) -> dict[str, CuttingResult]:
    return {job.expert.task: run_cutting(job, report) for job in jobs}


AnyJob = TypeVar("AnyJob", TrialJob, CuttingJob)


def with_less_memory(job: AnyJob) -> AnyJob | None:
    """Return the job with half the rows in the model at once, or None if that is one row already."""
    expert = with_half_micro_batch(job.expert)
    return None if expert is None else replace(job, expert=expert)
