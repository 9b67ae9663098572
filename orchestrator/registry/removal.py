"""Removing versions: from the registry for good, their runs so that MLflow can restore them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from functools import partial

from mlflow.entities.model_registry import ModelVersion

from orchestrator.registry.store import Store, all_pages, ignore_missing
from orchestrator.registry.version_files import fetched_place
from orchestrator.registry.versions import model_name


def remove_versions(store: Store, library: str, task: str, numbers: Collection[int]) -> None:
    """Remove these versions of a task, and the registered model when it keeps none.

    Their runs are deleted unless a version that stays came from them; so the next ``ttmoe run`` finds neither,
    and trains again. Runs go first: whoever is interrupted still finds the versions, and repeats.
    """
    name, client = model_name(library, task), store.client
    there = list(all_pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token)))
    gone = [version for version in there if int(version.version) in numbers]
    for version in gone:
        _delete_run(store, version, gone)
        shutil.rmtree(fetched_place(store, name, int(version.version), version.source or ""), ignore_errors=True)
    if len(gone) == len(there):
        ignore_missing(lambda: client.delete_registered_model(name))
        return
    for version in gone:
        ignore_missing(partial(client.delete_model_version, name, version.version))


def _delete_run(store: Store, version: ModelVersion, gone: list[ModelVersion]) -> None:
    if not version.run_id:
        return
    going = {(each.name, int(each.version)) for each in gone}
    users = store.client.search_model_versions(f"run_id = '{version.run_id}'")
    if all((user.name, int(user.version)) in going for user in users):
        run = ignore_missing(lambda: store.client.get_run(str(version.run_id)))
        if run is not None and run.info.lifecycle_stage == "active":
            store.client.delete_run(version.run_id)
