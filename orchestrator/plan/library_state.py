"""Where a library stands: the plan held against the registry, and why each piece of work is to be done or not."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.plan.planning import ExpertPlan, Plan
from ttmoe.errors import InputError
from workers.expert_result import EXPERT_RESULT_FILE, finished_result

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version

ABSENT = "not set"


@dataclass(frozen=True)
class ExpertState:
    """One task's expert: ``cached`` (the version of this spec is there), ``changed`` (only versions of other specs are)
    or ``missing``. ``version`` is that of the spec, else the task's newest; ``why`` says what makes it so.

    Work that was begun is met at ``step``; ``trained`` says that only the registration is left.
    """

    state: Literal["cached", "changed", "missing"]
    version: Version | None = None
    why: str = ""
    step: int = 0
    trained: bool = False


@dataclass(frozen=True)
class StageState:
    """The router or the search: ``cached``, ``stale`` (the router that answers is of other experts or settings) or
    ``missing``. ``differs`` are the tasks whose experts are not those of the router that answers.
    """

    state: Literal["cached", "stale", "missing"]
    version: Version | None = None
    why: str = ""
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class LibraryState:
    """All of a library; ``search`` is None where the config has none, ``orphaned`` are tasks with versions that the
    config does not name; ``versions`` are all of the registry's experts.
    """

    experts: dict[str, ExpertState]
    router: StageState
    search: StageState | None
    orphaned: tuple[str, ...]
    versions: tuple[Version, ...] = ()

    @property
    def todo(self) -> list[str]:
        """The tasks whose experts are to be made."""
        return [task for task, expert in self.experts.items() if expert.state != "cached"]

    @property
    def any(self) -> bool:
        """Is there anything to do?"""
        return bool(self.todo) or any(part and part.state != "cached" for part in (self.router, self.search))


def read_library_state(plan: Plan, registry: Registry | None) -> LibraryState:
    """Hold the plan against the registry (None: there is no store yet). It asks for all versions at once."""
    library = plan.folders.library
    versions = registry.experts(library, every=True) if registry else []
    of_task: dict[str, list[Version]] = {}
    for version in versions:
        of_task.setdefault(version.task, []).append(version)
    experts = {task: _expert(expert, of_task.get(task, [])) for task, expert in plan.experts.items()}
    orphaned = tuple(task for task in of_task if task not in plan.experts)
    search = None if plan.search_hash is None else _search(plan.search_hash, library, registry)
    return LibraryState(experts, _router(plan, registry), search, orphaned, tuple(versions))


def _expert(expert: ExpertPlan, versions: list[Version]) -> ExpertState:
    for version in versions:
        if version.spec_hash == expert.job.spec_hash:
            return ExpertState("cached", version, f"v{version.version}")
    folder = Path(expert.job.folder)
    # Reading the expert's weights to check them is for the few folders that claim to hold one.
    trained = (folder / EXPERT_RESULT_FILE).is_file() and finished_result(folder, expert.job.spec_hash) is not None
    step = 0 if trained else last_checkpoint_step(folder / "checkpoints")
    begun = "trained, to be registered" if trained else f"continues from step {step}" if step else ""
    if not versions:
        return ExpertState("missing", None, begun or "no version yet", step, trained)
    newest = max(versions, key=lambda version: version.version)
    why = "; ".join(filter(None, [describe_changes(newest, expert), begun]))
    return ExpertState("changed", newest, why, step, trained)


def last_checkpoint_step(folder: Path) -> int:
    """The step of the newest checkpoint in ``folder``, by the files' names; 0 where there is none."""
    found = [re.findall(r"\d+", path.name) for path in folder.glob("[!.]*")]
    return max((int(digits[-1]) for digits in found if digits), default=0)


def describe_changes(version: Version, expert: ExpertPlan) -> str:
    """The dotted keys in which the plan's spec differs from the version's, each with both values."""
    new = flatten(json.loads(json.dumps(expert.spec)))
    try:
        old = flatten(json.loads(version.tags["spec"]))
    except (KeyError, ValueError, AttributeError):  # an older version, or one that came from elsewhere
        return _by_tags(version, expert)
    said = [_said(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in [*new, *(old.keys() - new.keys())]]
    return "; ".join(filter(None, said)) or "its settings changed"


def flatten(spec: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    out: dict[str, Any] = {}
    for key, value in spec.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def _said(key: str, old: Any, new: Any) -> str:
    if old == new:
        return ""
    if key == "data" or key.endswith("digest"):  # nobody can read these
        return f"{key} changed"
    if key == "recipe":
        return f"recipe {old} -> {new} (the code trains differently)"
    return f"{key} {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _by_tags(version: Version, expert: ExpertPlan) -> str:
    """The same as far as the version's other tags tell."""
    job = expert.job
    asked = {
        "base_digest": ("base.digest", job.base.digest),
        "data_fingerprint": ("data", job.data.fingerprint),
        "method": ("adapter.method", job.adapter.method),
        "rank": ("adapter.rank", str(job.adapter.rank)),
        "shape": ("adapter.shape", "; ".join(f"{role}={shape}" for role, shape in expert.shapes.items())),
    }
    said = [_said(key, version.tags[tag], new) for tag, (key, new) in asked.items() if tag in version.tags]
    return "; ".join(filter(None, said)) or "its settings changed"


def _router(plan: Plan, registry: Registry | None) -> StageState:
    library = plan.folders.library
    if registry is None:
        return StageState("missing", why="no version yet")
    if found := registry.find_router(library, plan.router_hash):
        return StageState("cached", found, f"v{found.version}")
    current = registry.router(library)
    if current is None:
        return StageState("missing", why="no version yet")
    try:
        lock = registry.router_lock(current)
    except InputError:  # its files are gone: the run makes a new one all the same
        return StageState("stale", current, f"v{current.version} is of another spec, and its lock is gone")
    new = plan.lock
    differs = tuple(task for task in sorted(lock.keys() | new.keys()) if lock.get(task) != new.get(task))
    about = f"other experts ({_few(differs)})" if differs else "the same experts and other settings"
    return StageState("stale", current, f"v{current.version} is for {about}", differs)


def _search(spec_hash: str, library: str, registry: Registry | None) -> StageState:
    there = registry is not None and registry.search_artifacts(library, spec_hash) is not None
    return StageState("cached", why="finished") if there else StageState("missing", why="no finished search")


def _few(tasks: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(tasks[:most]) + (f" and {len(tasks) - most} more" if len(tasks) > most else "")
