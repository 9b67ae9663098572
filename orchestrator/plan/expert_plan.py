"""The plan of one expert: the job and the spec of what is trained, or the registered version that a config names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.config.schema import Config
from orchestrator.config.sections import AdapterSettings
from orchestrator.plan.adapter_fits import AdapterFits
from orchestrator.plan.folders import LibraryFolders
from orchestrator.plan.identity import hashed_settings, spec_hash
from orchestrator.plan.named_experts import read_named_expert
from orchestrator.pool.capacity import GB
from ttmoe.adapter import AdapterSpec
from ttmoe.base import Base
from ttmoe.errors import InputError
from ttmoe.template_files import template_digest
from workers.data.prepared import PreparedTask, prepare_task
from workers.expert_job import ExpertJob
from workers.generated_score import load_scorer
from workers.recipes import RECIPES
from workers.training.settings import MEMORY_ONLY, TrainSettings

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version


@dataclass(frozen=True)
class ExpertPlan:
    """Plan of one expert.

    Attributes:
        job: Job that trains the expert, or would.
        spec: Everything that decides its weights; ``job.spec_hash`` is the hash of it. Empty for a named expert.
        shapes: Shape of the adapter by role, with ``auto`` resolved; empty for a named expert.
        lora_parameters: Parameters of a LoRA adapter of rank 16 on the same layers, for comparison.
        cut_share: Share of a sample of its training rows that has more tokens than ``base.max_length``.
        named: The registered version that the config names, which is not trained; None if the expert is trained.
        labels: Labels that it answers with, in order; empty for choices and generated text.
    """

    job: ExpertJob
    spec: dict[str, Any]
    shapes: dict[str, str]
    lora_parameters: int
    cut_share: float = 0.0
    named: Version | None = None
    labels: tuple[str, ...] = ()


def plan_expert(
    config: Config, name: str, base: Base, fits: AdapterFits, folders: LibraryFolders, device: str
) -> ExpertPlan:
    """Plan the expert of one task.

    Args:
        config: The config.
        name: Name of the task.
        base: Resolved base.
        fits: Fits of adapters to the base.
        folders: Folders of the library.
        device: ``cpu`` or ``cuda``.

    Raises:
        InputError: If the data cannot be used, or the adapter does not fit the base.
    """
    if scorer := config.tasks[name].scorer:
        load_scorer(scorer, f"tasks.{name}.scorer")
    data = prepare_task(name, config.tasks[name], folders.cache)
    adapter = adapter_spec(config.task_adapter(name))
    try:
        fit = fits.fit(adapter)
    except InputError as error:
        where = f"tasks.{name}.{error.where}" if config.tasks[name].adapter.model_fields_set else error.where
        raise InputError(error.what, where=where, fix=error.fix) from error
    spec = expert_spec(base, adapter, fit.shapes, data, config.task_train(name), config.task_head(name))
    job = _expert_job(config, base, data, adapter, spec_hash(spec), fit.parameters, folders, device)
    return ExpertPlan(job, spec, fit.shapes, fit.lora_parameters, fits.cut_share(data), labels=data.label_names)


def plan_named_expert(
    config: Config,
    version: Version,
    base: Base,
    registry: Registry,
    fits: AdapterFits,
    folders: LibraryFolders,
    device: str,
) -> ExpertPlan:
    """Plan a task whose expert is a registered version.

    Args:
        config: The config.
        version: The version that the config names.
        base: Resolved base.
        registry: The registry.
        fits: Answers about the base.
        folders: Folders of the library.
        device: ``cpu`` or ``cuda``.

    Raises:
        InputError: If the data cannot be used, or the expert does not answer its rows.
    """
    data = prepare_task(version.task, config.tasks[version.task], folders.cache)
    manifest = read_named_expert(registry, version, base, data)
    job = _expert_job(config, base, data, manifest.adapter, version.spec_hash, manifest.parameters, folders, device)
    lora = int(version.tags.get("lora16_parameters", 0))
    return ExpertPlan(job, {}, {}, lora, fits.cut_share(data), version, manifest.labels)


def _expert_job(
    config: Config,
    base: Base,
    data: PreparedTask,
    adapter: AdapterSpec,
    hash_: str,
    parameters: int,
    folders: LibraryFolders,
    device: str,
) -> ExpertJob:
    return ExpertJob(
        data.name,
        base,
        data,
        adapter,
        config.task_head(data.name),
        config.task_train(data.name),
        hash_,
        parameters,
        str(folders.work_folder("experts", data.name, hash_)),
        threads=max(1, int(config.resources.cpus_per_expert)),
        device=device,
        cache=str(folders.cache),
        trunk_bytes=int(config.storage.trunk_gb * GB),
        scorer=config.tasks[data.name].scorer or "",
        scorer_rows=config.tasks[data.name].scorer_rows,
    )


def expert_spec(
    base: Base, adapter: AdapterSpec, shapes: dict[str, str], data: PreparedTask, train: TrainSettings, head: str
) -> dict[str, Any]:
    """Return the spec of an expert; ``shapes`` are the adapter's shapes by role with ``auto`` resolved."""
    return {
        "recipe": RECIPES["expert"],
        "base": base.identity(),
        "adapter": {**hashed_settings(adapter), "shape": shapes},
        "data": data.fingerprint,
        "train": train_spec(train, data, exclude=MEMORY_ONLY),
        "head": head,
    } | ({"chat_template": template_digest(base.chat_template)} if data.kind == "chat" else {})


def train_spec(train: TrainSettings, data: PreparedTask, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the training settings of a spec: ``validation_rows`` enters only where the split has more rows."""
    available = sum(data.counts["validation"].values())
    rows = train.evaluation_rows(available)
    limit = {"validation_rows": rows} if rows < available else {}
    return hashed_settings(train, exclude={*exclude, "validation_rows"}) | limit


def adapter_spec(adapter: AdapterSettings) -> AdapterSpec:
    """Convert the adapter section of a config to the model's adapter spec."""
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
