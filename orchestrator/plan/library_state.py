"""Compare a plan with the registry: which experts, router and search exist, which have to be made, and why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.plan.expert_plan import ExpertPlan
from orchestrator.plan.library_base import name_with_revision
from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_names
from ttmoe.errors import InputError
from workers.expert_result import EXPERT_RESULT_FILE, finished_result

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version

ABSENT = "not set"
NO_LONGER_HASHED = frozenset({"base.source", "base.id", "base.revision"})  # in specs of earlier versions
OTHER_IDENTITY = "its identity no longer contains where the base lies"


@dataclass(frozen=True)
class ExpertState:
    """State of one expert.

    Attributes:
        state: ``cached`` if a version of this spec is registered, ``changed`` if only versions of other specs are,
            ``missing`` if the task has no version, or the files of this spec's version are gone.
        version: Version of this spec, else the newest version of the task.
        reason: Why the state is so, as text.
        step: Step of the last checkpoint, at which training continues.
        trained: Whether the expert is trained and only has to be registered.
        gone: Whether a version of this spec is registered and its files are gone.
    """

    state: Literal["cached", "changed", "missing"]
    version: Version | None = None
    reason: str = ""
    step: int = 0
    trained: bool = False
    gone: bool = False


@dataclass(frozen=True)
class StageState:
    """State of the router or the search.

    Attributes:
        state: ``cached`` if a version of this spec is registered, ``stale`` if the current router was trained for other
            experts or settings, ``missing`` if there is none, or its files are gone.
        version: Version of this spec, else the current one; always None for the search.
        reason: Why the state is so, as text.
        changed_tasks: Tasks whose experts differ from those of the current router.
    """

    state: Literal["cached", "stale", "missing"]
    version: Version | None = None
    reason: str = ""
    changed_tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LibraryState:
    """State of a library.

    Attributes:
        experts: State of each expert by task.
        router: State of the router.
        search: State of the search; None if the config has none.
        orphaned: Tasks with registered versions that are not in the config.
        versions: All registered versions of experts of the library.
    """

    experts: dict[str, ExpertState]
    router: StageState
    search: StageState | None
    orphaned: tuple[str, ...]
    versions: tuple[Version, ...] = ()

    @property
    def todo(self) -> list[str]:
        """Tasks whose experts have to be trained or registered."""
        return [task for task, expert in self.experts.items() if expert.state != "cached"]

    @property
    def search_is_missing(self) -> bool:
        """Whether the config has a search that has to be made."""
        return self.search is not None and self.search.state != "cached"

    @property
    def gone(self) -> list[str]:
        """Tasks whose experts are registered and have no files."""
        return [task for task, expert in self.experts.items() if expert.gone]

    @property
    def has_work(self) -> bool:
        """Whether an expert, the router or the search has to be made."""
        return bool(self.todo) or any(stage and stage.state != "cached" for stage in (self.router, self.search))


def read_library_state(plan: Plan, registry: Registry | None) -> LibraryState:
    """Compare a plan with the registry and the work folders.

    Args:
        plan: The plan.
        registry: The registry; None if it does not exist yet. All versions are read with one query.
    """
    library = plan.folders.library
    versions = registry.experts(library, every=True) if registry else []
    by_task: dict[str, list[Version]] = {}
    for version in versions:
        by_task.setdefault(version.task, []).append(version)
    experts = {task: _expert_state(expert, by_task.get(task, []), registry) for task, expert in plan.experts.items()}
    orphaned = tuple(task for task in by_task if task not in plan.experts)
    search = None if plan.search_hash is None else _search_state(plan.search_hash, library, registry)
    return LibraryState(experts, _router_state(plan, registry), search, orphaned, tuple(versions))


def _expert_state(expert: ExpertPlan, versions: list[Version], registry: Registry | None) -> ExpertState:
    if expert.named:  # its files were read when the plan was made
        return ExpertState("cached", expert.named, f"v{expert.named.version}, named by the config")
    own = next((version for version in versions if version.spec_hash == expert.job.spec_hash), None)
    if own and registry and registry.has_files(own):
        return ExpertState("cached", own, f"v{own.version}")
    folder = Path(expert.job.folder)
    # finished_result reads and verifies the weights, so it is called only if a result file exists.
    trained = (folder / EXPERT_RESULT_FILE).is_file() and finished_result(folder, expert.job.spec_hash) is not None
    step = 0 if trained else last_checkpoint_step(folder / "checkpoints")
    progress = "trained, not yet registered" if trained else f"continues from step {step}" if step else ""
    if own:
        reason = "; ".join(filter(None, [f"the files of v{own.version} are gone or damaged", progress]))
        return ExpertState("missing", own, reason, step, trained, gone=True)
    if not versions:
        return ExpertState("missing", None, progress or "no version yet", step, trained)
    newest = max(versions, key=lambda version: version.version)
    reason = "; ".join(filter(None, [describe_changes(newest, expert), progress]))
    return ExpertState("changed", newest, reason, step, trained)


def last_checkpoint_step(folder: Path) -> int:
    """Return the step of the newest checkpoint in ``folder`` according to the file names; 0 if there is none."""
    numbers = [re.findall(r"\d+", path.name) for path in folder.glob("[!.]*")]
    return max((int(digits[-1]) for digits in numbers if digits), default=0)


def describe_changes(version: Version, expert: ExpertPlan) -> str:
    """Return the dotted keys in which the plan's spec differs from the version's, each with both values, as text."""
    new = flatten(json.loads(json.dumps(expert.spec)))
    try:
        old = flatten(json.loads(version.tags["spec"]))
    except (KeyError, ValueError, AttributeError):  # an imported version, or one of an older release
        return _describe_tag_changes(version, expert)
    keys = [*new, *(old.keys() - new.keys() - NO_LONGER_HASHED)]
    changes = [_describe_change(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    text = "; ".join(filter(None, [*changes, _describe_places(version, expert)]))
    return text or (OTHER_IDENTITY if NO_LONGER_HASHED & old.keys() else "settings changed")


def _describe_places(version: Version, expert: ExpertPlan) -> str:
    """Return where a version's base came from and where the planned one comes from, if they are not the same base."""
    base, tags = expert.job.base, version.tags
    if tags.get("base_digest", base.digest) == base.digest:
        return ""
    recorded = name_with_revision(tags.get("base", ""), tags.get("base_revision", ""))
    return _describe_change("base", recorded, name_with_revision(f"{base.source}:{base.id}", base.revision))


def flatten(spec: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted keys with ``prefix``."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _describe_change(key: str, old: Any, new: Any) -> str:
    if old == new:
        return ""
    if key == "data" or key.endswith("digest"):  # the values are hashes
        return f"{key} changed"
    if key == "recipe":
        return f"recipe {old} -> {new} (the code trains differently)"
    return f"{key} {_as_text(old)} -> {_as_text(new)}"


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _describe_tag_changes(version: Version, expert: ExpertPlan) -> str:
    """Return the changes that the tags of a version without a spec show."""
    job = expert.job
    planned = {
        "base_digest": ("base.digest", job.base.digest),
        "data_fingerprint": ("data", job.data.fingerprint),
        "method": ("adapter.method", job.adapter.method),
        "rank": ("adapter.rank", str(job.adapter.rank)),
        "shape": ("adapter.shape", "; ".join(f"{role}={shape}" for role, shape in expert.shapes.items())),
    }
    changes = [
        _describe_change(key, version.tags[tag], new) for tag, (key, new) in planned.items() if tag in version.tags
    ]
    return "; ".join(filter(None, [*changes, _describe_places(version, expert)])) or "settings changed"


def _router_state(plan: Plan, registry: Registry | None) -> StageState:
    library = plan.folders.library
    if registry is None:
        return StageState("missing", reason="no version yet")
    if version := registry.find_router(library, plan.router_hash):
        if not registry.has_files(version):
            return StageState("missing", reason=f"the files of v{version.version} are gone or damaged")
        return StageState("cached", version, f"v{version.version}")
    current = registry.router(library)
    if current is None:
        return StageState("missing", reason="no version yet")
    try:
        lock = registry.router_lock(current)
    except InputError:  # the files are gone; the run trains a new router in any case
        return StageState("stale", current, f"v{current.version} has another spec, and its lock cannot be read")
    new = plan.lock
    changed = tuple(task for task in sorted(lock.keys() | new.keys()) if lock.get(task) != new.get(task))
    difference = f"for other experts ({format_names(changed)})" if changed else "with other settings"
    return StageState("stale", current, f"v{current.version} was trained {difference}", changed)


def _search_state(spec_hash: str, library: str, registry: Registry | None) -> StageState:
    if registry is not None and registry.search_artifacts(library, spec_hash) is not None:
        return StageState("cached", reason="finished")
    return StageState("missing", reason="no finished search")
