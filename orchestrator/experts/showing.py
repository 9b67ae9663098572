"""``ttmoe experts show``: print all recorded details of an expert."""

from __future__ import annotations

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.plan.json_output import round_share, to_json
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library

_DETAIL_TAGS = ("origin", "base", "base_revision", "base_digest", "method", "rank", "shape", "data_fingerprint",
                "weights_digest")  # fmt: skip


def show_expert(
    store: StoreAddress, library: str | None, name: str, number: int | None, as_json: bool, console: Console
) -> None:
    """Print the details of one version as a table or as JSON.

    ``name`` and ``number`` select the version, as in ``choose_version``.

    Raises:
        InputError: If there is no such version.
    """
    registry, library = open_library(store, library)
    details = expert_details(registry, choose_version(registry, library, name, number))
    if as_json:
        console.out(to_json(details, exact=["spec"]), highlight=False)
        return
    spec = details.pop("spec", None)
    title = f"{details['library']}: {details['expert']}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", show_header=False)
    table.add_column("", overflow="fold")
    table.add_column("", overflow="fold")
    for key, value in _lines(details):
        table.add_row(key, escape(value))
    console.print(table)
    if spec is not None:
        console.out(f"spec:\n{json.dumps(spec, indent=1)}", highlight=False)


def expert_details(registry: Registry, version: Version) -> dict[str, Any]:
    """Return identity, aliases, base, adapter, size, metrics, location and routers of a version, ready for JSON.

    Tags of the version without a key of their own are under ``tags``.
    """
    tags = dict(version.tags)
    for key in ("library", "kind", "task", "spec_hash"):
        tags.pop(key, None)
    parameters, lora_parameters = (int(tags.pop(key, 0)) for key in ("parameters", "lora16_parameters"))
    details: dict[str, Any] = {
        "library": version.library,
        "expert": version_label(version),
        "aliases": list(version.aliases),
        "registered": version.created.isoformat(timespec="seconds"),
        "spec_hash": version.spec_hash,
        **{key: tags.pop(key) for key in _DETAIL_TAGS if key in tags},
        "parameters": parameters,
        "share_of_lora16": round_share(parameters / lora_parameters) if lora_parameters else None,
        "metrics": version.metrics,
        "run": version.run_id,
        "files": version.uri,
        "routers": _routers(registry, version),
    }
    if text := tags.pop("spec", None):
        details["spec"] = json.loads(text)
    return details | ({"tags": tags} if tags else {})


def _routers(registry: Registry, version: Version) -> list[str]:
    """Return the router versions, with their aliases, that use this version of an expert."""
    return [
        " ".join([f"v{router.version}", *router.aliases])
        for router in registry.routers(version.library)
        if registry.router_lock(router).get(version.task) == version.spec_hash
    ]


def _lines(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table: key and value."""
    lines = []
    for key, value in details.items():
        if isinstance(value, dict):
            lines += [(name, f"{item:.6g}" if isinstance(item, float) else str(item)) for name, item in value.items()]
        elif isinstance(value, list):
            lines.append((key, ", ".join(value) or "none"))
        elif key == "share_of_lora16":
            lines.append(("of LoRA-16", f"{value:.1%}" if value else "unknown"))
        elif key != "library":
            lines.append((key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)))
    return lines
