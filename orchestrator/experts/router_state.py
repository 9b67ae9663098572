"""Compare the lock of a library's router with the current experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.registry import Registry, Version
from orchestrator.registry.versions import CHAMPION

RETRAIN = "retrain it with `ttmoe run CONFIG`"


def how_to_route_to(version: Version) -> str:
    """Return what makes a router that uses this version, as text."""
    named = f"tasks.{version.task}.expert: {{version: {version.version}}}"
    return f"to route to it, name it in the config ({named}) and run `ttmoe run CONFIG`"


@dataclass(frozen=True)
class RouterState:
    """The champion router of a library, and how its lock differs from the champion experts.

    Attributes:
        router: The router's version.
        lock: Spec hash of the expert that the router was trained with, by task.
        changed: Tasks whose champion is another version than the lock's.
        unrouted: Tasks with a champion that are not in the lock.
        removed: Tasks of the lock that have no champion.
    """

    router: Version
    lock: dict[str, str]
    changed: tuple[str, ...]
    unrouted: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def stale(self) -> bool:
        """Whether the router uses experts that are not the champions."""
        return bool(self.changed or self.removed)

    def uses(self, version: Version) -> bool:
        """Return whether the lock contains this version of an expert."""
        return self.lock.get(version.task) == version.spec_hash

    def describe(self) -> str:
        """Return the differences and what to do, in one line; empty if there are none."""
        parts = [f"STALE: it uses another version of {', '.join(self.changed)}"] if self.changed else []
        parts += [f"STALE: experts without a champion: {', '.join(self.removed)}"] if self.removed else []
        parts += [f"it does not route to {', '.join(self.unrouted)}"] if self.unrouted else []
        return "; ".join([*parts, RETRAIN]) if parts else ""


def read_router_state(registry: Registry, library: str, experts: Iterable[Version]) -> RouterState | None:
    """Return the state of the champion router, or None if the library has none.

    Args:
        registry: The registry.
        library: The library.
        experts: Its expert versions; those that are not champions are ignored.
    """
    router = registry.router(library)
    if router is None:
        return None
    lock = registry.router_lock(router)
    champions = {version.task: version.spec_hash for version in experts if CHAMPION in version.aliases}
    changed = tuple(task for task, spec_hash in champions.items() if lock.get(task, spec_hash) != spec_hash)
    unrouted = tuple(sorted(champions.keys() - lock.keys()))
    return RouterState(router, lock, changed, unrouted, tuple(sorted(lock.keys() - champions.keys())))
