"""The plan: every piece of work that a config asks for, each with its identity, and what is there already."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.capacity import GB
from orchestrator.config import Adapter, Config
from orchestrator.layout import Layout
from orchestrator.spec import EXPERT_RECIPE, ROUTER_RECIPE, SEARCH_RECIPE, hashed_settings, spec_hash
from ttmoe.adapter import AdapterSpec, Group, count_lora, count_parameters, plan_groups
from ttmoe.base import Base, empty_body
from ttmoe.errors import InputError
from ttmoe.features import FeatureSpec
from ttmoe.words import require_words
from workers.bases import resolve_base
from workers.expert_job import ExpertJob
from workers.prepared import Prepared, prepare
from workers.settings import MEMORY_ONLY, Train

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ExpertPlan:
    """One expert: its ``job``, what it is made from (``spec``), and what plain LoRA of rank 16 would cost there."""

    job: ExpertJob
    spec: dict[str, Any]
    shapes: dict[str, str]
    lora_parameters: int


@dataclass(frozen=True)
class Plan:
    """What a config asks for."""

    config: Config
    layout: Layout
    base: Base
    features: FeatureSpec
    experts: dict[str, ExpertPlan]
    search_hash: str | None

    @property
    def lock(self) -> dict[str, str]:
        """Task -> expert spec hash."""
        return {task: expert.job.spec_hash for task, expert in self.experts.items()}

    @property
    def trunk(self) -> int:
        """The number of layers that no expert adapts."""
        return _trunk(self.experts)

    @property
    def router_hash(self) -> str:
        """The router's identity. It follows from the experts': any change to one makes the router stale."""
        return spec_hash(
            {
                "recipe": ROUTER_RECIPE,
                "lock": self.lock,
                "seed": self.config.seed,
                "features": hashed_settings(self.features),
                "settings": hashed_settings(self.config.router, exclude={"require"}),
                "base": hashed_settings(self.base, exclude={"folder"}),
            }
        )

    def only(self, tasks: Collection[str]) -> Plan:
        """The plan of a library of these tasks alone: what its router is trained for where others are missing."""
        return replace(self, experts={task: expert for task, expert in self.experts.items() if task in tasks})

    def work(self, kind: str, name: str, hash_: str) -> Path:
        """The folder of one piece of work."""
        return self.layout.work(kind, name, hash_)


def make_plan(config: Config) -> Plan:
    """Resolve the base, prepare the tasks, fit every adapter to the base's widths. Starts no work.

    Raises InputError for whatever cannot work: a base or a file that is missing, data that cannot be used, an adapter
    that does not fit.
    """
    layout = Layout.of(config)
    device = "cuda" if config.resources.gpus else "cpu"
    base = resolve_base(**config.base.model_dump(), cache=layout.cache, device=device)
    model = empty_body(base)
    if writing := [name for name, task in config.tasks.items() if task.kind == "generate"]:
        require_words(model, base.folder, f"tasks.{writing[0]}.kind")
    experts = {name: plan_expert(config, name, base, model, layout, device) for name in config.tasks}
    features = FeatureSpec(config.router.hidden_states(_trunk(experts)), config.router.pooling)
    features.indexes(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    return Plan(config, layout, base, features, experts, _search_hash(config, experts))


def plan_expert(config: Config, name: str, base: Base, model: nn.Module, layout: Layout, device: str) -> ExpertPlan:
    """The plan of one task's expert."""
    data = prepare(name, config.tasks[name], layout.cache)
    adapter = adapter_spec(config.task_adapter(name))
    try:
        groups = plan_groups(model, adapter)
    except InputError as error:
        where = f"tasks.{name}.{error.where}" if config.tasks[name].adapter.model_fields_set else error.where
        raise InputError(error.what, where=where, fix=error.fix) from error
    train, head = config.task_train(name), config.task_head(name)
    shapes = {group.role: str(group.method) for group in groups}
    spec = expert_spec(base, adapter, shapes, data, train, head)
    hash_ = spec_hash(spec)
    job = ExpertJob(
        name,
        base,
        data,
        adapter,
        head,
        train,
        hash_,
        count_parameters(groups),
        str(layout.work("experts", name, hash_)),
        threads=max(1, int(config.resources.cpus_per_expert)),
        device=device,
        cache=str(layout.cache),
        trunk_bytes=int(config.storage.trunk_gb * GB),
    )
    return ExpertPlan(job, spec, shapes, count_lora(groups))


def _trunk(experts: dict[str, ExpertPlan]) -> int:
    return min(expert.job.adapter.first_layer for expert in experts.values())


def expert_spec(
    base: Base, adapter: AdapterSpec, shapes: dict[str, str], data: Prepared, train: Train, head: str
) -> dict[str, Any]:
    """Everything that decides an expert's weights. ``shapes`` holds what ``auto`` came to."""
    return {
        "recipe": EXPERT_RECIPE,
        "base": hashed_settings(base, exclude={"folder"}),
        "adapter": {**hashed_settings(adapter), "shape": shapes},
        "data": data.fingerprint,
        "train": hashed_settings(train, exclude=MEMORY_ONLY),
        "head": head,
    }


def adapter_spec(adapter: Adapter) -> AdapterSpec:
    """The config's section as the model takes it."""
    return AdapterSpec(
        adapter.method,
        adapter.targets,
        adapter.first,
        adapter.last,
        adapter.rank,
        adapter.alpha,
        adapter.shape,
        adapter.init,
        adapter.dropout,
    )


def with_adapter(plan: Plan, name: str, groups: list[Group], adapter: AdapterSpec, train: Train) -> ExpertJob:
    """The job of task ``name`` with another adapter and training: a trial of a search."""
    job = plan.experts[name].job
    shapes = {group.role: str(group.method) for group in groups}
    hash_ = spec_hash(expert_spec(plan.base, adapter, shapes, job.data, train, job.head))
    return replace(job, adapter=adapter, train=train, spec_hash=hash_, parameters=count_parameters(groups))


def _search_hash(config: Config, experts: dict[str, ExpertPlan]) -> str | None:
    if config.search is None:
        return None
    spec = {
        "recipe": SEARCH_RECIPE,
        "settings": hashed_settings(config.search),
        "train": hashed_settings(config.search_train()),
    }
    task = dict(experts[config.search.task].spec)
    del task["train"]  # the task's own steps and the like are replaced by the search's
    return spec_hash(spec | {"task": task})
