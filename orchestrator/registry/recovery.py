"""What dead drivers left behind, brought to an end."""

from __future__ import annotations

from functools import partial

from orchestrator.registry.runs import finish_run
from orchestrator.registry.store import Store, all_pages, ignore_missing
from orchestrator.registry.versions import CANDIDATE, Version, find_by_alias, list_versions, promote


def close_stale(store: Store, library: str) -> int:
    """End the runs that a dead driver left open; how many. Only for the holder of the library's lock.

    A run whose version is registered lacked nothing but its end: it becomes FINISHED, and its version the
    candidate unless there is a newer one. Whatever else is RUNNING becomes KILLED.
    """
    found = [store.find_experiment(library, search=search) for search in (False, True)]
    ids = [experiment.experiment_id for experiment in found if experiment]
    if not ids:
        return 0
    query = "attributes.status != 'FINISHED'"
    runs = list(all_pages(lambda token: store.client.search_runs(ids, query, page_token=token)))
    registered = _by_run(store, library) if runs else {}
    closed = 0
    for run in runs:
        if versions := registered.get(run.info.run_id):
            _complete(store, versions)
            finish_run(store, run.info.run_id, "FINISHED")
        elif run.info.status == "RUNNING":
            finish_run(store, run.info.run_id, "KILLED")
        else:
            continue
        closed += 1
    return closed


def _by_run(store: Store, library: str) -> dict[str, list[Version]]:
    """The versions that each run made, oldest first."""
    found: dict[str, list[Version]] = {}
    for kind in ("expert", "router"):
        for version in list_versions(store, library, kind):
            found.setdefault(version.run_id, []).append(version)
    return found


def _complete(store: Store, versions: list[Version]) -> None:
    """What ``register`` does once a version is made: no second one of its spec, and its alias."""
    first, *doubles = versions
    for double in doubles:
        ignore_missing(partial(store.client.delete_model_version, double.name, str(double.version)))
    candidate = find_by_alias(store, first.library, first.task, CANDIDATE)
    if candidate is None or candidate.version < first.version:
        promote(store, first, CANDIDATE)
