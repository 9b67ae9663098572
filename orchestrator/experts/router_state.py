"""What a library's router was trained for, held against its experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.registry import Registry, Version
from orchestrator.registry.versions import CHAMPION

RETRAIN = "`ttmoe run CONFIG` trains it again"


@dataclass(frozen=True)
class RouterState:
    """The champion ``router`` and its ``lock``; ``other``: tasks whose champion is not the version it was trained
    for; ``unknown``: champions it knows nothing of; ``gone``: tasks it knows that have no champion any more.
    """

    router: Version
    lock: dict[str, str]
    other: tuple[str, ...]
    unknown: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def stale(self) -> bool:
        """Whether it answers with experts that are not the library's champions."""
        return bool(self.other or self.gone)

    def names(self, version: Version) -> bool:
        """Whether the lock names this version."""
        return self.lock.get(version.task) == version.spec_hash

    def describe(self) -> str:
        """What a user is to know of it, in one line; empty where all is well."""
        parts = [f"STALE: it answers with another version of {', '.join(self.other)}"] if self.other else []
        parts += [f"STALE: experts without a champion: {', '.join(self.gone)}"] if self.gone else []
        parts += [f"it does not know {', '.join(self.unknown)}"] if self.unknown else []
        return f"{'; '.join(parts)}; {RETRAIN}" if parts else ""


def read_router_state(registry: Registry, library: str, experts: Iterable[Version]) -> RouterState | None:
    """How the router stands to ``experts`` (those without a champion's alias do not count); None without a router."""
    router = registry.router(library)
    if router is None:
        return None
    lock = registry.router_lock(router)
    champions = {version.task: version.spec_hash for version in experts if CHAMPION in version.aliases}
    other = tuple(task for task, hash_ in champions.items() if lock.get(task, hash_) != hash_)
    unknown = tuple(sorted(champions.keys() - lock.keys()))
    return RouterState(router, lock, other, unknown, tuple(sorted(lock.keys() - champions.keys())))
