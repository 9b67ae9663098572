"""Make the plan of a config: the base, the prepared data, and a job and a spec hash for every expert."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.schema import Config
from orchestrator.plan.adapter_fits import AdapterFits
from orchestrator.plan.expert_plan import ExpertPlan, plan_expert, plan_named_expert, train_spec
from orchestrator.plan.folders import LibraryFolders
from orchestrator.plan.identity import hashed_settings, spec_hash
from orchestrator.plan.library_base import resolve_library_base
from orchestrator.plan.named_experts import find_named_experts
from orchestrator.plan.nodes import available_nodes, expert_resources
from orchestrator.pool.capacity import JobResources, Node
from ttmoe.base import Base
from ttmoe.features import ALL_STATES, POOLINGS, FeatureSpec
from ttmoe.generating_kinds import GENERATING_KINDS
from workers.recipes import RECIPES
from workers.training.settings import MEMORY_ONLY, ROUTER_UNHASHED, TrainSettings

if TYPE_CHECKING:
    from orchestrator.registry import Registry

MOST_STORED = 49_152  # numbers of a row, up to which the cache keeps all hidden states in all poolings
REPLACED_BY_TRIALS = frozenset({"method", "rank", "shape"})
"""Fields of ``AdapterSpec`` that each trial of a search chooses for itself."""


@dataclass(frozen=True)
class Plan:
    """Plan of a library.

    Attributes:
        config: The config.
        folders: Folders of the library.
        base: Resolved base.
        base_text: The base as text: id, commit, number format and digest.
        features: Features that the router reads.
        stored: Features that the cache keeps: all, for every router; of large bases those that this one reads.
        experts: Plan of each expert by task.
        search_hash: Spec hash of the search; None without a search.
        nodes: Nodes on which the work will run.
        resources: What a process that trains an expert reserves, without its memory.
        processes: Processes that train an expert together.
    """

    config: Config
    folders: LibraryFolders
    base: Base
    base_text: str
    features: FeatureSpec
    stored: FeatureSpec
    experts: dict[str, ExpertPlan]
    search_hash: str | None
    nodes: tuple[Node, ...] = field(compare=False)  # their free memory changes all the time
    resources: JobResources
    processes: int = 1

    @property
    def training_resources(self) -> JobResources:
        """What the training of one expert reserves, without its memory."""
        return replace(self.resources, processes=self.processes)

    @property
    def engine(self) -> TrainSettings:
        """Training settings that name the engine, which all tasks have in common."""
        return next(iter(self.experts.values())).job.train

    @property
    def pass_resources(self) -> JobResources:
        """What a job of stage 2 that needs the base reserves, without its memory: if it is divided, all its parts."""
        return self.training_resources if self.engine.shards_base else self.resources

    @property
    def lock(self) -> dict[str, str]:
        """Spec hash of each expert by task."""
        return {task: expert.job.spec_hash for task, expert in self.experts.items()}

    @property
    def trunk_depth(self) -> int:
        """Number of lowest layers that no expert adapts."""
        return _trunk_depth(self.experts)

    @property
    def router_hash(self) -> str:
        """Spec hash of the router. It contains the lock, so a change of any expert makes the router stale.

        The rows of an expert are part of its own hash, except where the config names a registered one.
        """
        rows = {task: expert.job.data.fingerprint for task, expert in self.experts.items() if expert.named}
        settings = self.config.router
        if settings.layers == "auto":  # what it stands for on this base
            settings = settings.model_copy(update={"layers": self.features.layers})
        return spec_hash(
            {
                "recipe": RECIPES["router"],
                "lock": self.lock,
                "seed": self.config.seed,
                "features": hashed_settings(self.features),
                "settings": hashed_settings(settings, exclude=ROUTER_UNHASHED),
                "base": self.base.identity(),
            }
            | ({"rows": rows} if rows else {})
        )

    def only(self, tasks: Collection[str]) -> Plan:
        """Return the plan restricted to these tasks, such as those whose experts did not fail."""
        return replace(self, experts={task: expert for task, expert in self.experts.items() if task in tasks})

    def work_folder(self, kind: str, name: str, hash_: str) -> Path:
        """Return the folder in which a result is computed, see ``LibraryFolders.work_folder``."""
        return self.folders.work_folder(kind, name, hash_)


def make_plan(config: Config, nodes: Sequence[Node] | None = None, registry: Registry | None = None) -> Plan:
    """Resolve the base, prepare the data of all tasks, and fit every adapter to the base. No training starts.

    Args:
        config: The config.
        nodes: Nodes on which the work will run; by default those that ``available_nodes`` finds.
        registry: The registry, in which ``base.dtype: auto`` finds what the library has; None if it does not exist yet.

    Raises:
        InputError: If the base or a file is missing, data cannot be used, an adapter does not fit the base, or the
            cluster cannot be used.
    """
    folders = LibraryFolders.of(config)
    nodes = available_nodes() if nodes is None else nodes
    resources = expert_resources(config.resources, nodes)
    device = "cuda" if resources.gpus else "cpu"
    base, base_text = resolve_library_base(config, resources, nodes, registry, folders.cache)
    fits = AdapterFits(base, folders.cache)
    require_usable_base(config, fits)
    named = find_named_experts(config, registry)
    experts = {
        name: plan_expert(config, name, base, fits, folders, device) for name in config.tasks if name not in named
    }
    if registry:
        experts |= {
            name: plan_named_expert(config, version, base, registry, fits, folders, device)
            for name, version in named.items()
        }
    experts = {name: experts[name] for name in config.tasks}
    states = config.router.hidden_states(_trunk_depth(experts), fits.layers, fits.width)
    features = FeatureSpec(states, config.router.pooling)
    features.indexes(fits.layers)
    fits.save()
    every = len(POOLINGS) * fits.width * (fits.layers + 1)
    stored = ALL_STATES if every <= MOST_STORED or config.router.compare_depths is True else features
    search_hash = _search_hash(config, experts)
    return Plan(config, folders, base, base_text, features, stored, experts, search_hash, tuple(nodes), resources)


def require_usable_base(config: Config, fits: AdapterFits) -> None:
    """Raise InputError if the base cannot read what its tokenizer writes, or a task writes text and the base cannot."""
    fits.require_sound_base(length_is_given="max_length" in config.base.model_fields_set)
    if writing := [name for name, task in config.tasks.items() if task.kind in GENERATING_KINDS]:
        fits.require_language_head(f"tasks.{writing[0]}.kind")
    if chats := [name for name in writing if config.tasks[name].kind == "chat" and not config.tasks[name].declared]:
        fits.require_chat_template(f"tasks.{chats[0]}.kind")


def _trunk_depth(experts: dict[str, ExpertPlan]) -> int:
    return min(expert.job.adapter.first_layer for expert in experts.values())


def _search_hash(config: Config, experts: dict[str, ExpertPlan]) -> str | None:
    """Return the spec hash of the search: without what its trials replace, and what changes no result."""
    if (search := config.search) is None:
        return None
    settings = hashed_settings(search, exclude={"max_parallel", "trials_per_job", "tasks", "train"})
    common = {"recipe": RECIPES["search"], "settings": settings}
    of_task = {name: _searched_task_spec(config, experts[name]) for name in config.searched_tasks}
    return spec_hash(common | (of_task[search.task] if search.task else {"tasks": of_task}))


def _searched_task_spec(config: Config, expert: ExpertPlan) -> dict[str, Any]:
    job, spec, space = expert.job, expert.spec, config.search and config.search.space
    kept = {"rank"} if space and space.lr == "auto" else set()  # the learning rate of each trial follows from it
    if config.search and config.search.method == "truncate":  # the task's own adapter is cut
        kept = {"rank", "shape"}
    adapter = {key: value for key, value in spec["adapter"].items() if key not in REPLACED_BY_TRIALS - kept}
    return {
        "train": train_spec(config.search_train(job.task), job.data, exclude=MEMORY_ONLY),
        "task": {**spec, "adapter": adapter, "train": None},
    }
