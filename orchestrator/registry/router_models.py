"""The router in the registry: ``<library>.router``, a folder that is also an MLflow pyfunc model."""

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
from orchestrator.registry.version_files import artifact_uri, read_file
from orchestrator.registry.versions import (
    CHAMPION,
    Version,
    VersionMetadata,
    find_by_alias,
    find_version,
    list_versions,
    register,
)

LOCK = "lock.json"
# Written out, because MLflow would load the model to find them.
_REQUIREMENTS = ("ttmoe", "torch", "transformers", "safetensors")
_EXAMPLE = [  # one row of each form
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
    promote: bool = True,
) -> Version:
    """Register the router in ``folder`` (``router.*``, ``experts/<task>/``) and its ``lock``, once per spec.

    What is registered is whole: MLflow loads it as a pyfunc model on the base in ``base_folder``, or where
    the same base lies elsewhere, with ``load_model(uri, model_config={"base": folder})``.
    """

    def upload() -> str:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / ROUTER
            write_model(folder, model, lock, base_folder)
            store.client.log_artifacts(run_id, str(model), ROUTER)
        return artifact_uri(store, run_id, ROUTER)

    entry = VersionMetadata(ROUTER, run_id, tags, metrics or {}, description)
    return register(store, library, ROUTER, spec_hash, upload, entry, promote=promote)


def find_router(store: Store, library: str, spec_hash: str) -> Version | None:
    """The router's version of a spec, or None."""
    return find_version(store, library, ROUTER, spec_hash)


def current_router(store: Store, library: str) -> Version | None:
    """The router that answers for the library, or None."""
    return find_by_alias(store, library, ROUTER, CHAMPION)


def list_routers(store: Store, library: str) -> list[Version]:
    """Every version of the library's router, oldest first."""
    return list_versions(store, library, ROUTER)


def router_lock(store: Store, router: Version) -> dict[str, str]:
    """Task -> spec hash of the experts that the router was trained for: from its tag, else from its files."""
    try:
        return dict(json.loads(router.tags["lock"]))
    except (KeyError, ValueError):  # an older version, or more experts than a tag can hold
        return dict(json.loads(read_file(store, router, LOCK)))


def write_model(folder: Path, model: Path, lock: dict[str, Any], base_folder: Path | None) -> None:
    """Write ``model``: MLflow's files for a pyfunc model and, beside them, the router's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about type hints of its own that it imports here
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
    """What goes in and comes out.

    ``second`` is a text and ``choices`` a list of texts; the model checks them itself. Declared as a string and an
    array, MLflow 3.17 would make of a missing ``second`` the text "None", refuse rows without ``choices`` beside rows
    with them, and take every dict of columns for a single row.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Map

    text, number = DataType.string, DataType.double
    optional = [ColSpec(AnyType(), name, required=False) for name in ("second", "choices")]
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
