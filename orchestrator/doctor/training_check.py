"""The check that means most: a two-step expert, planned, trained, verified and registered as ``ttmoe run`` does it."""

from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console

from orchestrator.config.schema import Config
from orchestrator.doctor.checks import Check, checked, faulty, passed
from orchestrator.doctor.tiny_library import tiny_config, write_tiny_library
from orchestrator.plan.quantities import format_duration

_TRAIN = {"steps": 2, "eval_every": 1}


@checked("training")
def check_training(place: Config, folder: Path) -> Check:
    """Train an expert of two steps and a router on a base that is made for it, and read them from the store.

    Args:
        place: Config whose store and resources are used. What is written in the store is removed.
        folder: Folder for it; on a cluster, all nodes share it.
    """
    from orchestrator.registry import Registry
    from orchestrator.run.driver import run_library

    began = time.monotonic()
    loaded = write_tiny_library(tiny_config(place, folder, "ttmoe-doctor", 1, _TRAIN))
    store, library = loaded.config.store, loaded.config.library
    try:
        run_library(loaded, Console(file=io.StringIO()))
        registry = Registry.open(store.uri, store.artifacts, store.source)
        missing = [task for task in loaded.config.tasks if not _is_registered(registry, library, task)]
        if missing or registry.router(library) is None:
            what = "an expert" if missing else "the router"
            return faulty(f"{what} was trained, and is not in {store}", "see the MLflow server and its artifacts")
    finally:
        if not store.is_missing:
            Registry.open(store.uri, store.artifacts, store.source).remove_library(library)
    return passed(f"an expert of two steps and its router, registered, in {format_duration(time.monotonic() - began)}")


def _is_registered(registry, library: str, task: str) -> bool:  # type: ignore[no-untyped-def]
    return any(version.task == task and registry.has_files(version) for version in registry.experts(library))
