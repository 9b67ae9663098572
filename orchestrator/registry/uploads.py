"""Upload of files to the artifacts of a run."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.registry.artifact_folders import local_folder
from orchestrator.registry.availability import is_unavailable
from orchestrator.registry.store import Store
from ttmoe.errors import WorkFailedError


def artifact_uri(store: Store, run_id: str, folder: str = "") -> str:
    """Return the URI of a run's artifacts, or of a folder in them. It is requested once, if the run was not started."""
    if run_id not in store.artifact_uris:
        store.artifact_uris[run_id] = store.client.get_run(run_id).info.artifact_uri
    return f"{store.artifact_uris[run_id]}/{folder}" if folder else store.artifact_uris[run_id]


def artifact_address(store: Store, run_id: str, name: str) -> str:
    """Return the path of an artifact of a run, or its URI where it is not on this machine."""
    uri = artifact_uri(store, run_id, name)
    return str(local_folder(store, uri) or uri)


def log_file(store: Store, run_id: str, path: Path, folder: str = "") -> None:
    """Copy a file, or the content of a folder, to ``folder`` in the run's artifacts."""
    repository = _repository(store, run_id)
    upload = repository.log_artifacts if path.is_dir() else repository.log_artifact
    upload(str(path), folder or None)


def upload_model(
    store: Store, run_id: str, source: Path, folder: str, required: Mapping[str, str | None], where: str
) -> str:
    """Copy the files of an expert or router to ``folder`` in the run's artifacts, and read them back.

    Artifact stores upload nothing from a folder that is empty on this machine, and report no error.

    Args:
        store: An open store.
        run_id: The run.
        source: The folder of the files.
        folder: Folder in the run's artifacts.
        required: Names of files that must be in ``source``, with their SHA-256 where it is known.
        where: Name of the model for the error message.

    Returns:
        The URI of the uploaded folder.

    Raises:
        WorkFailedError: A file is missing in ``source`` or differs from ``required``, or what was uploaded differs.
    """
    files = _digests(source)
    wrong = sorted(
        name for name, digest in required.items() if files.get(name) is None or digest not in (None, files[name])
    )
    if wrong or not files:
        raise WorkFailedError(
            f"files are missing on this machine, or not those that were made: {', '.join(wrong) or 'all'} in {source}",
            where=where,
            fix="storage.root must be a folder that this machine shares with the workers; then repeat the command",
        )
    log_file(store, run_id, source, folder)
    stored = _stored_digests(store, run_id, folder)
    if lost := sorted(name for name, digest in files.items() if stored.get(name) != digest):
        raise WorkFailedError(
            f"the artifact store did not keep what was uploaded: {', '.join(lost)}",
            where=where,
            fix="check the artifact store of the MLflow server, then repeat the command",
        )
    return artifact_uri(store, run_id, folder)


def _repository(store: Store, run_id: str) -> ArtifactRepository:
    # MLflow's client requests the run before the first upload to it, for the address that is known here.
    return get_artifact_repository(artifact_uri(store, run_id), tracking_uri=store.uri)


def _stored_digests(store: Store, run_id: str, folder: str) -> dict[str, str]:
    """Return the digests of the files in the artifact store, which are downloaded unless they are local."""
    if local := local_folder(store, artifact_uri(store, run_id, folder)):
        return _digests(local)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return _digests(Path(_repository(store, run_id).download_artifacts(folder, scratch)))
        except (MlflowException, OSError) as error:
            if is_unavailable(error):
                raise
            return {}


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder by relative path, without logs: these may grow meanwhile."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
