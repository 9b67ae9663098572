"""Where a storage root keeps its MLflow store."""

from __future__ import annotations

from pathlib import Path


def store_uri(root: Path) -> str:
    """Return the URI of the SQLite store in a storage root."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"
