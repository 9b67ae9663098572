"""``ttmoe experts ls``: list the experts of a library, their versions, and the state of the router."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.router_state import RouterState, read_router_state
from orchestrator.plan.json_output import to_json
from orchestrator.registry import Version
from orchestrator.registry.library import open_library

COLUMN_HEADS = ("expert", "v", "aliases", "accuracy", "parameters", "method", "spec", "origin", "routed")
PIPE_WIDTH = 200
"""Characters of a line if the output is not a terminal, so that programs such as grep find one line per expert."""


def print_experts(store: StoreAddress, library: str | None, every: bool, as_json: bool, console: Console) -> None:
    """Print a table (or JSON) with the current version of each expert, or with ``every`` all versions; and the router.

    Takes two queries for the experts, however many they are, and two for the router.
    """
    registry, library = open_library(store, library)
    versions = registry.experts(library, every=every)
    routing = read_router_state(registry, library, versions)
    rows = [_row(version, routing) for version in versions]
    if as_json:
        content = {"library": library, "experts": rows, "router": _router_row(routing)}
        console.out(to_json(content), highlight=False)
        return
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print(_table(library, rows))
    console.print(_router_line(routing), highlight=False, markup=False, soft_wrap=True)


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
        "routed": routing is not None and routing.uses(version),
        "registered": version.created.isoformat(timespec="seconds"),
    }


def _table(library: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"Library {library}", title_justify="left")
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


def _router_row(routing: RouterState | None) -> dict[str, Any] | None:
    if routing is None:
        return None
    return {
        "version": routing.router.version,
        "routing_accuracy": routing.router.metrics.get("test.routing_accuracy"),
        "spec_hash": routing.router.spec_hash,
        "stale": routing.stale,
        "other": list(routing.changed),
        "unknown": list(routing.unrouted),
        "gone": list(routing.removed),
    }


def _router_line(routing: RouterState | None) -> str:
    if routing is None:
        return "no router yet: it is trained at the end of the run"
    router, differences = routing.router, routing.describe()
    accuracy = router.metrics.get("test.routing_accuracy")
    measured = "not measured" if accuracy is None else f"{accuracy:.3f}"
    line = f"router v{router.version}: routing accuracy {measured}, spec {router.spec_hash[:12]}"
    return f"{line}\n{differences}" if differences else line
