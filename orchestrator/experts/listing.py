"""``ttmoe experts ls`` and ``promote``: what the registry holds of a library, and which versions answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.experts.router_state import RouterState, read_router_state
from orchestrator.registry import Version
from orchestrator.registry.library import open_library

COLUMN_HEADS = ("expert", "v", "aliases", "accuracy", "parameters", "method", "spec", "origin", "routed")
WIDE = 200  # characters


def print_experts(root: Path, library: str | None, every: bool, as_json: bool, console: Console) -> None:
    """Print a line for each expert (with ``every``, for each version), and the router's.

    Reading costs two queries, however many experts there are, and two for the router.
    """
    registry, name = open_library(root, library)
    versions = registry.experts(name, every=every)
    routing = read_router_state(registry, name, versions)
    rows = [_row(version, routing) for version in versions]
    if as_json:
        console.out(
            json.dumps({"library": name, "experts": rows, "router": _router(routing)}, indent=1), highlight=False
        )
        return
    if not console.is_terminal:  # a line stays a line for grep and the like
        console.width = max(console.width, WIDE)
    console.print(_table(name, rows))
    console.print(_line(routing), highlight=False, markup=False, soft_wrap=True)


def _row(version: Version, routing: RouterState | None) -> dict[str, Any]:
    tags = version.tags
    return {
        "expert": version.task,
        "version": version.version,
        "aliases": list(version.aliases),
        "accuracy": version.metrics.get("test.accuracy"),
        "parameters": int(tags.get("parameters", 0)),
        "method": tags.get("method"),
        "rank": tags.get("rank"),
        "spec_hash": version.spec_hash,
        "origin": tags.get("origin", "trained"),
        "routed": routing is not None and routing.names(version),
        "registered": version.created.isoformat(timespec="seconds"),
    }


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"Library {name}", title_justify="left")
    for head in COLUMN_HEADS:
        table.add_column(head, justify="right" if head in ("accuracy", "parameters") else "left", overflow="fold")
    for row in rows:
        table.add_row(
            row["expert"],
            str(row["version"]),
            " ".join(row["aliases"]),
            "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
            f"{row['parameters']:,}",
            f"{row['method']} rank {row['rank']}",
            row["spec_hash"][:8],
            row["origin"],
            "yes" if row["routed"] else "no",
        )
    return table


def _router(routing: RouterState | None) -> dict[str, Any] | None:
    if routing is None:
        return None
    return {
        "version": routing.router.version,
        "routing_accuracy": routing.router.metrics.get("test.routing_accuracy"),
        "spec_hash": routing.router.spec_hash,
        "stale": routing.stale,
        "other": list(routing.other),
        "unknown": list(routing.unknown),
        "gone": list(routing.gone),
    }


def _line(routing: RouterState | None) -> str:
    if routing is None:
        return "no router yet: the run has not come to its end"
    router, state = routing.router, routing.describe()
    accuracy = router.metrics.get("test.routing_accuracy")
    measured = "not measured" if accuracy is None else f"{accuracy:.3f}"
    line = f"router v{router.version}: routing accuracy {measured}, spec {router.spec_hash[:12]}"
    return f"{line}\n{state}" if state else line
