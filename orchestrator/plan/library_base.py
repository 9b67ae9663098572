"""The base of a library: where the config says, and with ``dtype: auto`` in the number format of its experts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.schema import Config
from orchestrator.config.sections import BaseSettings
from orchestrator.plan.nodes import choose_base_dtype
from orchestrator.pool.capacity import JobResources, Node
from ttmoe.base import Base
from ttmoe.quantization import NOT_QUANTISED
from workers.base.base_sources import DEFAULT_REVISION, base_of_config, resolve_base

if TYPE_CHECKING:
    from orchestrator.registry import Registry, Version

KEPT = "kept as the library's experts have it"
SLOW = "slow because not every node computes in it natively"


def resolve_library_base(
    config: Config, resources: JobResources, nodes: Sequence[Node], registry: Registry | None, cache: Path
) -> tuple[Base, str]:
    """Return the base of a library and a description of it.

    ``dtype: auto`` is what the library's experts on this base have. For the first expert it is what all nodes that can
    train one compute in natively. So another machine does not train all experts again.

    Args:
        config: The config.
        resources: What the training of one expert reserves.
        nodes: Nodes of the cluster.
        registry: The registry, which is asked only for ``dtype: auto``; None if it does not exist yet.
        cache: Root folder of the cache.

    Returns:
        The base, and its id, commit on the hub, number format and digest as text.

    Raises:
        InputError: If the base is missing, or cannot be downloaded or converted.
    """
    settings, native = config.base, choose_base_dtype(resources, nodes)
    is_auto = settings.dtype == "auto"
    use: dict[str, Any] = {
        "dtype": native if is_auto else settings.dtype,
        "max_length": settings.max_length,
        "pooling": settings.pooling,
        "quantize": settings.quantize,
    }
    if settings.config:
        base = base_of_config(settings.config, cache, **use)
        return base, f"{base.id} ({base.dtype}{_quantised(base)}, a config without weights)"
    base = resolve_base(**settings.model_dump(exclude={*use, "config"}), **use, cache=cache)
    versions = registry.experts(config.library, every=True) if registry and is_auto else []
    if kept := _dtype_of_experts(versions, base.digest):
        note = f", {KEPT}, {SLOW}" if kept != native == "float32" else f", {KEPT}"
        return replace(base, dtype=kept), _describe(base, settings, kept + note)
    return base, _describe(base, settings, base.dtype)


def _dtype_of_experts(versions: Sequence[Version], digest: str) -> str | None:
    """Return the dtype of the newest champion on the base with this digest, else of the newest expert on it.

    Imported experts have no spec and do not count. None if no expert does.
    """
    for version in sorted(versions, key=lambda each: ("champion" in each.aliases, each.created), reverse=True):
        with suppress(KeyError, ValueError, TypeError):  # a version without a spec
            recorded = json.loads(version.tags["spec"])["base"]
            if recorded["digest"] == digest:
                return str(recorded["dtype"])
    return None


def _describe(base: Base, settings: BaseSettings, dtype: str) -> str:
    """Return the text of a base, such as ``model at 0123456789ab (main, bfloat16, sha256 0123456789ab)``."""
    asked = settings.revision or DEFAULT_REVISION
    files = base.digest.rpartition(":")[2]
    branch = f"{asked}, " if settings.hub and asked != base.revision else ""
    return f"{name_with_revision(base.id, base.revision)} ({branch}{dtype}{_quantised(base)}, sha256 {files[:12]})"


def _quantised(base: Base) -> str:
    return "" if base.quantize == NOT_QUANTISED else f", quantised to {base.quantize}"


def name_with_revision(name: str, revision: str) -> str:
    """Return the name of a base with its version or the begin of its commit, if it has one."""
    return f"{name} at {revision[:12]}" if revision else name
