"""The registry: the state of every library, kept in MLflow. The only package that imports it.

``Registry`` is its whole surface; each operation is described where it is written.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

# Read by MLflow at import. Unless told not to, it reports home, prints addresses and draws bars.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
logging.getLogger("alembic").setLevel(logging.WARNING)

with warnings.catch_warnings():
    # MLflow 3.17 declares its tables with a loader that SQLAlchemy 2.1 deprecates; only its import warns.
    warnings.simplefilter("ignore", DeprecationWarning)
    from orchestrator.registry.away import is_away
    from orchestrator.registry.experts import list_experts, register_expert
    from orchestrator.registry.folders import fetch, read_file
    from orchestrator.registry.progress import (
        RunRecord,
        child_runs,
        metric_history,
        newest_run,
        planned_work,
        run_record,
    )
    from orchestrator.registry.recovery import close_stale
    from orchestrator.registry.removal import remove_versions
    from orchestrator.registry.routers import current_router, find_router, list_routers, register_router, router_lock
    from orchestrator.registry.runs import (
        ending,
        expert_run,
        finish_run,
        log_file,
        log_metrics,
        log_text,
        start_run,
        tag_run,
    )
    from orchestrator.registry.searches import search_artifacts
    from orchestrator.registry.store import Library, Store, libraries, open_store
    from orchestrator.registry.versions import Version, find, promote

__all__ = ["Library", "Registry", "RunRecord", "Version", "is_away"]


class Registry(Store):
    """An open store with everything that can be done to it. Every method may be repeated after a crash."""

    @classmethod
    def open(cls, uri: str, artifact_root: Path) -> Registry:
        """Open the store, made first where it is a new SQLite file. Raises InputError when it cannot be."""
        store = open_store(uri, artifact_root)
        return cls(store.client, store.uri, store.artifact_root)

    libraries = libraries

    start_run = start_run
    expert_run = expert_run
    log_metrics = log_metrics
    tag_run = tag_run
    log_text = log_text
    log_file = log_file
    finish_run = finish_run
    ending = ending
    close_stale = close_stale

    newest_run = newest_run
    run_record = run_record
    child_runs = child_runs
    planned_work = planned_work
    metric_history = metric_history

    register_expert = register_expert
    find_expert = find
    experts = list_experts

    register_router = register_router
    find_router = find_router
    router = current_router
    routers = list_routers
    router_lock = router_lock

    search_artifacts = search_artifacts

    promote = promote
    remove_versions = remove_versions
    fetch = fetch
    read_file = read_file
