"""Where ``ttmoe doctor`` works: the storage, the MLflow store and the resources of a config, or the defaults."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.runtime_sections import StorageSettings
from orchestrator.config.schema import Config
from orchestrator.doctor.tiny_library import tiny_config


def place_of(loaded: LoadedConfig | None, storage: str | None = None) -> Config:
    """Return the config of a place: its base and its tasks are stand-ins, which are not read.

    Args:
        loaded: The user's config; None for the defaults.
        storage: ``storage.root`` of a cluster that the config does not set; the stand-ins lie in it.
    """
    given = loaded.config.storage if loaded else StorageSettings()
    if storage and "root" not in given.model_fields_set:
        given = given.model_copy(update={"root": storage})
    folder = Path(given.root) / "ttmoe-doctor"
    stand_in = tiny_config(loaded.config if loaded else None, folder, "ttmoe-doctor", 1, {})
    return stand_in.model_copy(update={"storage": given})
