"""Routers as registered models ``<library>.router``, which MLflow loads as pyfunc models."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from orchestrator.registry.expert_models import ROUTER
from orchestrator.registry.store import Store
from orchestrator.registry.uploads import upload_model
from orchestrator.registry.version_files import read_json
from orchestrator.registry.versions import (
    BASE_FOLDER,
    CHAMPION,
    Version,
    VersionMetadata,
    find_by_alias,
    find_version,
    list_versions,
    model_name,
    register,
)

LOCK = "lock.json"
# Listed here because MLflow would load the model to detect them.
_REQUIREMENTS = ("ttmoe", "torch", "transformers", "safetensors")
_EXAMPLE = [  # one row for each kind of task: text, pair, choice
    {"text": "What is the capital of France?"},
    {"text": "A man is eating.", "second": "Nobody eats."},
    {"text": "The glass fell. What followed?", "choices": ["It broke.", "It sang."]},
]


def register_router(
    store: Store,
    library: str,
    spec_hash: str,
    folder: Path,
    lock: dict[str, Any],
    run_id: str,
    tags: dict[str, Any],
    *,
    base_folder: Path | None = None,
    metrics: dict[str, float] | None = None,
    description: str = "",
    about: str = "",
    promote: bool = True,
) -> Version:
    """Upload a router with its experts and lock to its run and register it, at most one version per spec hash.

    The version is complete except for the base: MLflow loads it as a pyfunc model with the base in ``base_folder``,
    or with the same base elsewhere by ``load_model(uri, model_config={"base": folder})``.

    Args:
        store: An open store.
        library: Name of the library.
        spec_hash: Hash of the router's spec.
        folder: The router's files ``router.*`` and the experts in ``experts/<task>/``.
        lock: Spec hash of each task's expert.
        run_id: The run that receives the files as artifacts.
        tags: Tags of the version, without the prefix ``ttmoe.``.
        base_folder: The base's folder, which the model loads by default.
        metrics: Metrics of the version; they are stored as tags.
        description: Description of the version in MLflow.
        about: Description of the registered model in MLflow.
        promote: Set the alias ``champion`` in addition to ``candidate``.
    """

    def upload() -> str:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / ROUTER
            write_model(folder, model, lock, base_folder)
            return upload_model(store, run_id, model, ROUTER, {LOCK: None}, model_name(library, ROUTER))

    tags = tags | ({BASE_FOLDER: base_folder} if base_folder else {})
    metadata = VersionMetadata(ROUTER, run_id, tags, metrics or {}, description, about)
    return register(store, library, ROUTER, spec_hash, upload, metadata, promote=promote)


def find_router(store: Store, library: str, spec_hash: str) -> Version | None:
    """Return the router version of a spec, or None if there is none."""
    return find_version(store, library, ROUTER, spec_hash)


def current_router(store: Store, library: str) -> Version | None:
    """Return the router version with the alias ``champion``, or None if there is none."""
    return find_by_alias(store, library, ROUTER, CHAMPION)


def list_routers(store: Store, library: str) -> list[Version]:
    """Return every version of the library's router, oldest first."""
    return list_versions(store, library, ROUTER)


def router_lock(store: Store, router: Version) -> dict[str, str]:
    """Return the lock of a router: for each task, the spec hash of the expert that the router was trained for."""
    try:
        return dict(json.loads(router.tags["lock"]))
    except (KeyError, ValueError):  # an older version has no such tag; a tag cannot hold the lock of many experts
        return read_json(store, router, LOCK)


def write_model(folder: Path, model: Path, lock: dict[str, Any], base_folder: Path | None) -> None:
    """Write a pyfunc model folder.

    Args:
        folder: The router's files, which are copied.
        model: The folder to create.
        lock: Content of ``lock.json``.
        base_folder: The base that the model loads by default.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints at this import
        import mlflow.pyfunc
    mlflow.pyfunc.save_model(
        str(model),
        loader_module="orchestrator.pyfunc",
        signature=_signature(),
        input_example=_EXAMPLE,
        pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in _REQUIREMENTS],
        model_config={"base": str(base_folder) if base_folder else "", "device": "auto"},
    )
    shutil.copytree(folder, model, dirs_exist_ok=True)
    (model / LOCK).write_text(json.dumps(lock, indent=1, sort_keys=True))


def _signature() -> Any:
    """Return the columns of the model's inputs and outputs.

    ``second`` is a text, ``choices`` a list of texts and ``messages`` a conversation, but they are declared as AnyType
    and checked by the model.
    With a string and an array, MLflow 3.17 would convert a missing ``second`` to the text "None", reject a batch in
    which only some rows have ``choices``, and treat every dict of columns as a single row.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Map

    text, number = DataType.string, DataType.double
    optional = [ColSpec(AnyType(), name, required=False) for name in ("second", "choices", "messages")]
    answer: dict[str, Any] = {
        "task": text,
        "label": text,
        "confidence": number,
        "routing": number,
        "scores": Map(number),
    }
    return ModelSignature(
        Schema([ColSpec(text, "text"), *optional]), Schema([ColSpec(kind, name) for name, kind in answer.items()])
    )
