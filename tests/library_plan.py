"""A plan of two tasks on the tiny base, and a registry with versions that were not trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tiny

from orchestrator.config.schema import Config
from orchestrator.plan.planning import Plan, make_plan
from orchestrator.registry import Version
from ttmoe.errors import InputError


def plan_of(
    base_folder: Path, folder: Path, *, nodes: Any = None, registry: FakeRegistry | None = None, **sections: Any
) -> Plan:
    """Return the plan of the tasks colours and animals.

    ``sections`` replace sections of the config; the entries of ``tasks`` are merged into the tasks.
    """
    files = {"colours": (tiny.COLOURS, "north"), "animals": (tiny.ANIMALS, "south")}
    tasks = {}
    for name, (words, filler) in files.items():
        path = folder / f"{name}.jsonl"
        tasks[name] = tiny.text_task(path if path.exists() else tiny.write_texts(path, words, filler))
    for name, settings in sections.pop("tasks", {}).items():
        tasks[name] = tasks[name] | settings
    config = {"library": "tiny", "base": {"folder": str(base_folder), "dtype": "float32", "max_length": 32},
             "adapter": {"rank": 4}, "tasks": tasks, "train": {"steps": 40},
             "storage": {"root": str(folder / "runs")}}  # fmt: skip
    return make_plan(Config.model_validate(config | sections), nodes, registry)  # type: ignore[arg-type]


def version_of(plan: Plan, task: str, number: int = 1, *, spec_tag: bool = True, **metrics: float) -> Version:
    """Return the version that a run of the plan would register."""
    expert = plan.experts[task]
    base = plan.base
    tags = {"base": f"{base.source}:{base.id}", "base_revision": base.revision, "base_digest": base.digest,
            "data_fingerprint": expert.job.data.fingerprint,
            "method": expert.job.adapter.method, "rank": str(expert.job.adapter.rank),
            "shape": "; ".join(f"{k}={v}" for k, v in expert.shapes.items())}  # fmt: skip
    if spec_tag:
        tags["spec"] = json.dumps(expert.spec)
    return version(task, expert.job.spec_hash, number, tags, {k.replace("_", "."): v for k, v in metrics.items()})


def version(task: str, spec_hash: str, number: int, tags: dict[str, str], metrics: dict[str, float]) -> Version:
    return Version(f"tiny.{task}", number, "tiny", task, spec_hash, tags, metrics, (), "", "", datetime.now(UTC))


@dataclass
class FakeRegistry:
    """Registry that answers the queries for a library state, and counts the queries for experts."""

    versions: list[Version] = field(default_factory=list)
    champion: Version | None = None
    lock: dict[str, str] | None = None
    search: Path | None = None
    queries: int = 0
    gone: tuple[Version, ...] = ()

    def has_files(self, version: Version) -> bool:
        return version not in self.gone

    def experts(self, library: str, *, every: bool = False) -> list[Version]:
        self.queries += 1
        return self.versions if every else []

    def find_router(self, library: str, spec_hash: str) -> Version | None:
        return self.champion if self.champion and self.champion.spec_hash == spec_hash else None

    def router(self, library: str) -> Version | None:
        return self.champion

    def router_lock(self, router: Version) -> dict[str, str]:
        if self.lock is None:
            raise InputError("the files are missing")
        return self.lock

    def search_artifacts(self, library: str, spec_hash: str) -> Path | None:
        return self.search
