"""State of every library in an MLflow store. Only this package imports MLflow.

``Registry`` has every operation as a method; each is documented in the module that defines it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# MLflow reads these at import. By default it sends telemetry, prints addresses and draws progress bars.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# By default MLflow's client retries for four minutes and waits two minutes for each response, which hides an outage.
# One retry covers a connection that the server closed while it was idle; longer outages are handled in `retrying`.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
logging.getLogger("alembic").setLevel(logging.WARNING)
# It prints the traceback of a database that is locked or cannot be opened, also before a retry. The error is raised.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

with warnings.catch_warnings():
    # MLflow 3.17 declares its tables with a loader that SQLAlchemy 2.1 deprecates; only its import warns.
    warnings.simplefilter("ignore", DeprecationWarning)
    from orchestrator.registry.availability import is_unavailable
    from orchestrator.registry.claim_tags import lease_holder
    from orchestrator.registry.expert_models import find_experts, list_experts, register_expert
    from orchestrator.registry.lease import hold_lease
    from orchestrator.registry.recovery import close_stale, open_runs, unfinished_specs
    from orchestrator.registry.removal import remove_library, remove_versions
    from orchestrator.registry.retrying import (
        RetryingStore,
        end_run_on_exit,
        retried,
        retry_while_unavailable,
        unavailable_error,
    )
    from orchestrator.registry.router_models import (
        current_router,
        find_router,
        list_routers,
        register_router,
        router_lock,
    )
    from orchestrator.registry.run_records import (
        RunRecord,
        child_runs,
        metric_history,
        newest_run,
        newest_search,
        planned_work,
        run_record,
        trial_runs,
    )
    from orchestrator.registry.runs import (
        expert_run,
        finish_run,
        log_metrics,
        log_text,
        start_run,
        tag_run,
    )
    from orchestrator.registry.searches import continue_search, search_artifacts
    from orchestrator.registry.store import Library, libraries, open_store
    from orchestrator.registry.uploads import artifact_address, log_file
    from orchestrator.registry.version_files import check_files, fetch, read_file, read_json, version_has_files
    from orchestrator.registry.versions import Version, find_version, promote, tag_version

__all__ = [
    "Library",
    "Registry",
    "RunRecord",
    "Version",
    "is_unavailable",
    "retry_while_unavailable",
    "unavailable_error",
]


class Registry(RetryingStore):
    """An open MLflow store and its operations. Every operation is safe to repeat after a crash."""

    @classmethod
    def open(cls, uri: str, artifact_root: Path, where: str = "tracking.uri") -> Registry:
        """Open the store at ``uri``; a missing SQLite file is created.

        Args:
            uri: ``sqlite:///file``, a database URI, or the ``http(s)`` URI of a tracking server.
            artifact_root: Folder for artifacts; with a tracking server, for downloaded copies of them.
            where: What named the store, for errors.

        Raises:
            InputError: The store cannot be opened.
        """
        store = open_store(uri, artifact_root, where)
        return cls(store.client, store.uri, store.artifact_root)

    def with_retries(self, seconds: float, notify: Callable[[str], Any]) -> Registry:
        """Return the same store with operations that are retried while it is unavailable.

        Args:
            seconds: Time to retry an operation before it raises WorkFailedError.
            notify: Function that receives a message for the user when an operation fails for the first time.
        """
        return replace(self, patience=seconds, notify=notify)

    @property
    def without_retries(self) -> Registry:
        """The same store with operations that raise the first error."""
        return replace(self, patience=0.0)

    libraries = retried(libraries)
    hold_lease = hold_lease
    lease_holder = retried(lease_holder)

    start_run = retried(start_run)
    expert_run = retried(expert_run)
    log_metrics = retried(log_metrics)
    tag_run = retried(tag_run)
    log_text = retried(log_text)
    log_file = retried(log_file)
    artifact_address = retried(artifact_address)
    finish_run = retried(finish_run)
    end_run_on_exit = end_run_on_exit
    close_stale = retried(close_stale)
    unfinished_specs = retried(unfinished_specs)
    open_runs = retried(open_runs)

    newest_run = retried(newest_run)
    newest_search = retried(newest_search)
    run_record = retried(run_record)
    child_runs = retried(child_runs)
    planned_work = retried(planned_work)
    metric_history = retried(metric_history)

    register_expert = retried(register_expert)
    find_expert = retried(find_version)
    find_experts = retried(find_experts)
    experts = retried(list_experts)

    register_router = retried(register_router)
    find_router = retried(find_router)
    router = retried(current_router)
    routers = retried(list_routers)
    router_lock = retried(router_lock)

    search_artifacts = retried(search_artifacts)
    continue_search = retried(continue_search)
    trial_runs = retried(trial_runs)

    promote = retried(promote)
    tag_version = retried(tag_version)
    remove_versions = retried(remove_versions)
    remove_library = retried(remove_library)
    has_files = version_has_files
    check_files = retried(check_files)
    fetch = retried(fetch)
    read_file = retried(read_file)
    read_json = retried(read_json)
