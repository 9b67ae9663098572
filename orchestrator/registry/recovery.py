"""Runs and versions that a driver left unfinished: their repair, and what can be continued."""

from __future__ import annotations

from functools import partial

from mlflow.entities import Run

from orchestrator.registry.runs import finish_run
from orchestrator.registry.store import TAG, Store, all_pages, ignore_missing
from orchestrator.registry.version_files import version_has_files
from orchestrator.registry.versions import CANDIDATE, Version, find_by_alias, list_versions, promote

Identity = tuple[str, str, str]


def close_stale(store: Store, library: str) -> int:
    """End the runs that a driver left open, and restore the library's experiments if they were deleted.

    Only the holder of the library's lease may call it: then no open run belongs to a driver that works.

    A run with a registered version becomes FINISHED, and its version becomes the candidate unless a newer one is.
    Every other RUNNING run becomes KILLED. What exists twice, because a driver died between a repeated request and its
    cleaning, or lost the lease, is deleted: versions of one spec, and runs of one spec or one request.

    Returns:
        Number of runs that were ended or deleted.
    """
    experiments = [store.find_experiment(library, search=search, restore=True) for search in (False, True)]
    ids = [experiment.experiment_id for experiment in experiments if experiment]
    if not ids:
        return 0
    query = "attributes.status != 'FINISHED'"
    runs = list(all_pages(lambda token: store.client.search_runs(ids, query, page_token=token)))
    registered = _single_versions(store, library) if runs else {}
    closed, seen = 0, set()
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        identity = _identity(run)
        version = registered.get(identity)
        if version and version.run_id == run.info.run_id:
            _make_candidate(store, version)
            finish_run(store, run.info.run_id, "FINISHED")
        elif version or (identity and identity in seen):
            store.client.delete_run(run.info.run_id)
        elif run.info.status == "RUNNING":
            finish_run(store, run.info.run_id, "KILLED")
        else:
            seen.add(identity)
            continue
        seen.add(identity)
        closed += 1
    return closed


def unfinished_specs(store: Store, library: str) -> set[tuple[str, str]]:
    """Return task and spec hash of every run of an expert that has not FINISHED, read in pages of 1,000 runs."""
    experiment = store.experiment_id(library)
    query = f"attributes.status != 'FINISHED' and tags.`{TAG}kind` = 'expert'"
    search = partial(store.client.search_runs, [experiment], query, max_results=1000)
    runs = all_pages(lambda token: search(page_token=token))
    return {(run.data.tags[f"{TAG}task"], run.data.tags[f"{TAG}spec_hash"]) for run in runs}


def open_runs(store: Store, library: str) -> list[str]:
    """Return the names of the library's runs that are RUNNING, those of its searches included."""
    experiments = [store.find_experiment(library, search=search) for search in (False, True)]
    ids = [experiment.experiment_id for experiment in experiments if experiment]
    search = partial(store.client.search_runs, ids, "attributes.status = 'RUNNING'")
    return [str(run.info.run_name) for run in all_pages(lambda token: search(page_token=token))] if ids else []


def _identity(run: Run) -> Identity | None:
    """Return what only one run may have: its spec, or the token of the request that created it; None for neither."""
    tags = {key.removeprefix(TAG): value for key, value in run.data.tags.items()}
    if tags.get("kind") in ("expert", "trial") and "spec_hash" in tags:
        return tags["kind"], tags.get("task", ""), tags["spec_hash"]
    return ("token", "", tags["token"]) if "token" in tags else None


def _single_versions(store: Store, library: str) -> dict[Identity | None, Version]:
    """Return the library's versions by the identity of their run. Of several with one spec, keep the first with files.

    The others are deleted, with their runs; their aliases move to the one that is kept.
    """
    by_spec: dict[Identity | None, list[Version]] = {}
    for kind in ("expert", "router"):
        for version in list_versions(store, library, kind):
            by_spec.setdefault(("expert", version.task, version.spec_hash), []).append(version)
    return {identity: _keep_one(store, versions) for identity, versions in by_spec.items()}


def _keep_one(store: Store, versions: list[Version]) -> Version:
    if len(versions) == 1:
        return versions[0]
    kept = next((version for version in versions if version_has_files(store, version)), versions[0])
    for version in versions:
        if version is kept:
            continue
        for alias in version.aliases:
            promote(store, kept, alias)
        ignore_missing(partial(store.client.delete_model_version, version.name, str(version.version)))
        if version.run_id and version.run_id != kept.run_id:
            ignore_missing(partial(store.client.delete_run, version.run_id))
    return kept


def _make_candidate(store: Store, version: Version) -> None:
    """Do what ``register`` does last: set the alias ``candidate``, unless a newer version has it."""
    candidate = find_by_alias(store, version.library, version.task, CANDIDATE)
    if candidate is None or candidate.version < version.version:
        promote(store, version, CANDIDATE)
