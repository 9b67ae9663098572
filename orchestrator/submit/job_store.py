"""The store of a cluster's runs, opened from this machine."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.config.clusters import find_cluster
from orchestrator.config.loading import load_config
from orchestrator.config.store_address import TRACKING_VARIABLE, StoreAddress, find_store
from orchestrator.submit.job_package import storage_root, tracking_uri
from ttmoe.errors import InputError


def find_job_store(cluster: str, config: str | None) -> tuple[StoreAddress, str | None]:
    """Return the store of the runs on a cluster, and the library of the config.

    Args:
        cluster: Name of the cluster.
        config: The config of the run; without it, the profile's storage and tracking server hold for any library.

    Raises:
        InputError: If the record is in a folder that this machine does not have.
    """
    loaded = load_config(config).config if config else None
    profile = find_cluster(cluster, loaded.clusters if loaded else None)
    uri = tracking_uri(loaded, profile) if loaded else profile.tracking or os.environ.get(TRACKING_VARIABLE)
    root = storage_root(loaded, profile) if loaded else profile.storage or ""
    if not uri and not Path(root).is_absolute():
        fix = "name the config with --config, or the store with --uri"
        raise InputError("it is not known where the record is", where=f"cluster {cluster}", fix=fix)
    if not uri and not Path(root).is_dir():
        fix = "repeat this on a machine that has the folder, or give `tracking` of the cluster: an MLflow server"
        raise InputError(f"the record is in {root}, which this machine does not have", where=cluster, fix=fix)
    return find_store(config_uri=uri, config_root=Path(root)), loaded.library if loaded else None
