"""Runs and versions that a driver left unfinished: their repair, and what can be continued."""

from __future__ import annotations

from functools import partial

from orchestrator.registry.runs import finish_run
from orchestrator.registry.store import TAG, Store, all_pages, ignore_missing
from orchestrator.registry.versions import CANDIDATE, Version, find_by_alias, list_versions, promote


def close_stale(store: Store, library: str) -> int:
    """End the runs that a crashed driver left open, and restore the library's experiments if they were deleted.

    Only the holder of the library's lock may call it.

    A run with a registered version becomes FINISHED, and its version becomes the candidate unless a newer one is.
    Every other RUNNING run becomes KILLED.

    Returns:
        Number of runs that were ended.
    """
    experiments = [store.find_experiment(library, search=search, restore=True) for search in (False, True)]
    ids = [experiment.experiment_id for experiment in experiments if experiment]
    if not ids:
        return 0
    query = "attributes.status != 'FINISHED'"
    runs = list(all_pages(lambda token: store.client.search_runs(ids, query, page_token=token)))
    registered = _versions_by_run(store, library) if runs else {}
    closed = 0
    for run in runs:
        if versions := registered.get(run.info.run_id):
            _complete_registration(store, versions)
            finish_run(store, run.info.run_id, "FINISHED")
        elif run.info.status == "RUNNING":
            finish_run(store, run.info.run_id, "KILLED")
        else:
            continue
        closed += 1
    return closed


def unfinished_specs(store: Store, library: str) -> set[tuple[str, str]]:
    """Return task and spec hash of every run of an expert that has not FINISHED, read in pages of 1,000 runs."""
    experiment = store.experiment_id(library)
    query = f"attributes.status != 'FINISHED' and tags.`{TAG}kind` = 'expert'"
    search = partial(store.client.search_runs, [experiment], query, max_results=1000)
    runs = all_pages(lambda token: search(page_token=token))
    return {(run.data.tags[f"{TAG}task"], run.data.tags[f"{TAG}spec_hash"]) for run in runs}


def _versions_by_run(store: Store, library: str) -> dict[str, list[Version]]:
    """Return the library's versions by run id, oldest first."""
    by_run: dict[str, list[Version]] = {}
    for kind in ("expert", "router"):
        for version in list_versions(store, library, kind):
            by_run.setdefault(version.run_id, []).append(version)
    return by_run


def _complete_registration(store: Store, versions: list[Version]) -> None:
    """Do what ``register`` does after it created a version: delete duplicates of the spec and set the alias."""
    first, *duplicates = versions
    for duplicate in duplicates:
        ignore_missing(partial(store.client.delete_model_version, duplicate.name, str(duplicate.version)))
    candidate = find_by_alias(store, first.library, first.task, CANDIDATE)
    if candidate is None or candidate.version < first.version:
        promote(store, first, CANDIDATE)
