"""``ttmoe experts``: what the registry holds of a library."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.library import open_library


def list_experts(root: Path, library: str | None, console: Console) -> None:
    """Print a line for each expert, and the router's."""
    registry, name = open_library(root, library)
    table = Table(box=SIMPLE_HEAD, title=f"Library {name}", title_justify="left")
    for head in ("expert", "v", "aliases", "accuracy", "parameters", "method", "spec"):
        table.add_column(head, justify="right" if head in ("accuracy", "parameters") else "left", overflow="fold")
    for version in registry.experts(name):
        tags = version.tags
        table.add_row(
            version.task,
            str(version.version),
            " ".join(version.aliases),
            f"{version.metrics['test.accuracy']:.3f}",
            f"{int(tags['parameters']):,}",
            f"{tags['method']} rank {tags['rank']}",
            version.spec_hash[:8],
        )
    console.print(table)
    if router := registry.router(name):
        accuracy = router.metrics["test.routing_accuracy"]
        console.print(
            f"router v{router.version}: routing accuracy {accuracy:.3f}, spec {router.spec_hash[:12]}",
            highlight=False,
        )
    else:
        console.print("no router yet: the run has not come to its end")
