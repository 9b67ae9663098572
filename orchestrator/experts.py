"""``ttmoe experts``: what the registry holds of a library."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.library import open_library


def list_experts(root: Path, library: str | None, console: Console) -> None:
    """Print a line for each expert, and the router's."""
    registry, name = open_library(root, library)
    table = Table(title=f"Library {name}", title_justify="left")
    for head in ("expert", "version", "aliases", "test accuracy", "parameters", "method", "shape", "spec", "created"):
        table.add_column(head, justify="right" if head in ("version", "test accuracy", "parameters") else "left")
    for version in registry.experts(name):
        tags = version.tags
        table.add_row(version.task, f"v{version.version}", ", ".join(version.aliases), f"{version.metrics['test.accuracy']:.3f}",
                      f"{int(tags['parameters']):,}", tags["method"], tags["shape"].replace("; ", "\n"),
                      version.spec_hash[:12], f"{version.created:%Y-%m-%d %H:%M}")  # fmt: skip
    console.print(table)
    if router := registry.router(name):
        accuracy = router.metrics["test.routing_accuracy"]
        console.print(f"router v{router.version}: routing accuracy {accuracy:.3f}, spec {router.spec_hash[:12]}", highlight=False)
    else:
        console.print("no router yet: the run has not come to its end")
