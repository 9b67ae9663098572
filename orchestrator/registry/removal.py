"""Removal of versions and of whole libraries: permanent in the registry, restorable for their runs."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from functools import partial

from mlflow.entities.model_registry import ModelVersion

from orchestrator.registry.store import TAG, Store, all_pages, check_name, ignore_missing
from orchestrator.registry.version_files import download_path
from orchestrator.registry.versions import model_name


def remove_versions(store: Store, library: str, task: str, numbers: Collection[int]) -> None:
    """Remove versions of a task, and its registered model if no version remains.

    A version's run is deleted too, unless a remaining version uses it, so that the next ``ttmoe run`` trains again.
    Runs are deleted before versions: after an interruption the versions still exist, and the call can be repeated.

    Args:
        store: An open store.
        library: Name of the library.
        task: Name of the task.
        numbers: Version numbers to remove; numbers that do not exist are ignored.
    """
    name, client = model_name(library, task), store.client
    versions = list(all_pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token)))
    removed = [version for version in versions if int(version.version) in numbers]
    for version in removed:
        _delete_run(store, version, removed)
        shutil.rmtree(download_path(store, name, int(version.version), version.source or ""), ignore_errors=True)
    if len(removed) == len(versions):
        ignore_missing(lambda: client.delete_registered_model(name))
        return
    for version in removed:
        ignore_missing(partial(client.delete_model_version, name, version.version))


def remove_library(store: Store, library: str) -> None:
    """Remove all registered models of a library, and its experiments with their runs.

    Args:
        store: An open store.
        library: Name of the library; nothing is done if there is none.
    """
    check_name(library, "library")
    query, client = f"tags.`{TAG}library` = '{library}'", store.client
    for model in list(all_pages(lambda token: client.search_registered_models(query, page_token=token))):
        ignore_missing(partial(client.delete_registered_model, model.name))
    for search in (False, True):
        if experiment := store.find_experiment(library, search=search):
            client.delete_experiment(experiment.experiment_id)


def _delete_run(store: Store, version: ModelVersion, removed: list[ModelVersion]) -> None:
    """Delete the version's run unless a version outside ``removed`` uses it."""
    if not version.run_id:
        return
    keys = {(each.name, int(each.version)) for each in removed}
    users = store.client.search_model_versions(f"run_id = '{version.run_id}'")
    if all((user.name, int(user.version)) in keys for user in users):
        run = ignore_missing(lambda: store.client.get_run(str(version.run_id)))
        if run is not None and run.info.lifecycle_stage == "active":
            store.client.delete_run(version.run_id)
