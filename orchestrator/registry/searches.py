"""Searches by spec hash: the artifacts of a finished one, and one that can be continued."""

from __future__ import annotations

from pathlib import Path

from orchestrator.registry.artifact_folders import local_folder
from orchestrator.registry.store import TAG, Store
from orchestrator.registry.version_files import download, fetched_path


def search_artifacts(store: Store, library: str, spec_hash: str) -> Path | None:
    """Return a local folder with the artifacts of the finished search of a spec, or None if there is no such search.

    A search whose folder is gone does not count. The artifacts are downloaded if a tracking server stores them.

    Raises:
        InputError: The download failed.
    """
    experiment = store.find_experiment(library, search=True)
    if experiment is None:
        return None
    query = f"tags.`{TAG}spec_hash` = '{spec_hash}' and tags.`{TAG}kind` = 'search' and attributes.status = 'FINISHED'"
    runs = store.client.search_runs([experiment.experiment_id], query, max_results=1)
    if not runs:
        return None
    run = runs[0].info
    target = fetched_path(store, run.run_id)
    if folder := local_folder(store, run.artifact_uri):
        return folder if folder.is_dir() else None
    return download(store, run.artifact_uri, target, f"search {run.run_id}")


def continue_search(store: Store, library: str, spec_hash: str) -> str | None:
    """Set the newest search of a spec that has not FINISHED to RUNNING; return its run id, or None without one."""
    experiment = store.find_experiment(library, search=True)
    if experiment is None:
        return None
    query = f"tags.`{TAG}spec_hash` = '{spec_hash}' and tags.`{TAG}kind` = 'search' and attributes.status != 'FINISHED'"
    order = ["attributes.start_time DESC"]
    runs = store.client.search_runs([experiment.experiment_id], query, max_results=1, order_by=order)
    if not runs:
        return None
    run_id: str = runs[0].info.run_id
    store.client.update_run(run_id, status="RUNNING")
    return run_id
