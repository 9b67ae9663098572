"""Upload of files to the artifacts of a run."""

from __future__ import annotations

from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.registry.store import Store


def artifact_uri(store: Store, run_id: str, folder: str = "") -> str:
    """Return the URI of a run's artifacts, or of a folder in them. It is requested once, if the run was not started."""
    if run_id not in store.artifact_uris:
        store.artifact_uris[run_id] = store.client.get_run(run_id).info.artifact_uri
    return f"{store.artifact_uris[run_id]}/{folder}" if folder else store.artifact_uris[run_id]


def log_file(store: Store, run_id: str, path: Path, folder: str = "") -> None:
    """Copy a file, or the content of a folder, to ``folder`` in the run's artifacts."""
    # MLflow's client requests the run before the first upload to it, for the address that is known here.
    repository = get_artifact_repository(artifact_uri(store, run_id), tracking_uri=store.uri)
    upload = repository.log_artifacts if path.is_dir() else repository.log_artifact
    upload(str(path), folder or None)
