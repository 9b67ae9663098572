"""``ttmoe experts show``: all that the registry knows of one expert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library


def show_expert(
    root: Path, library: str | None, name: str, number: int | None, as_json: bool, console: Console
) -> None:
    """Print one version: identity, aliases, base, adapter, sizes, metrics, where it lies, and who routes to it."""
    registry, found = open_library(root, library)
    sheet = expert_details(registry, choose_version(registry, found, name, number))
    if as_json:
        console.out(json.dumps(sheet, indent=1), highlight=False)
        return
    spec = sheet.pop("spec", None)
    table = Table(
        box=SIMPLE_HEAD, title=f"{sheet['library']}: {sheet['expert']}", title_justify="left", show_header=False
    )
    table.add_column("", overflow="fold")
    table.add_column("", overflow="fold")
    for key, value in _lines(sheet):
        table.add_row(key, escape(value))
    console.print(table)
    if spec is not None:
        console.out(f"spec:\n{json.dumps(spec, indent=1)}", highlight=False)


def expert_details(registry: Registry, version: Version) -> dict[str, Any]:
    """The same as values. Tags that have no place of their own here stand under ``tags``."""
    tags = dict(version.tags)
    for known in ("library", "kind", "task", "spec_hash"):
        tags.pop(known, None)
    parameters, lora = (int(tags.pop(key, 0)) for key in ("parameters", "lora16_parameters"))
    sheet: dict[str, Any] = {
        "library": version.library,
        "expert": version_label(version),
        "aliases": list(version.aliases),
        "registered": version.created.isoformat(timespec="seconds"),
        "spec_hash": version.spec_hash,
        **{key: tags.pop(key) for key in _OF_ITS_OWN if key in tags},
        "parameters": parameters,
        "share_of_lora16": round(parameters / lora, 4) if lora else None,
        "metrics": version.metrics,
        "run": version.run_id,
        "files": version.uri,
        "routers": _routers(registry, version),
    }
    if text := tags.pop("spec", None):
        sheet["spec"] = json.loads(text)
    return sheet | ({"tags": tags} if tags else {})


_OF_ITS_OWN = ("origin", "base", "base_revision", "base_digest", "method", "rank", "shape", "data_fingerprint",
               "weights_digest")  # fmt: skip


def _routers(registry: Registry, version: Version) -> list[str]:
    """The router's versions whose lock names this one."""
    return [
        " ".join([f"v{router.version}", *router.aliases])
        for router in registry.routers(version.library)
        if registry.router_lock(router).get(version.task) == version.spec_hash
    ]


def _lines(sheet: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for key, value in sheet.items():
        if isinstance(value, dict):
            lines += [
                (inner, f"{number:.6g}" if isinstance(number, float) else str(number))
                for inner, number in value.items()
            ]
        elif isinstance(value, list):
            lines.append((key, ", ".join(value) or "none"))
        elif key == "share_of_lora16":
            lines.append(("of LoRA-16", f"{value:.1%}" if value else "not known"))
        elif key != "library":
            lines.append((key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)))
    return lines
