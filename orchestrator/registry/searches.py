"""Finished searches: found again by their spec hash."""

from __future__ import annotations

import urllib.parse
import urllib.request
from pathlib import Path

from orchestrator.registry.store import TAG, Store


def search_artifacts(store: Store, library: str, spec_hash: str) -> Path | None:
    """The local folder of the artifacts of a search that came to its end, or None where there is no such search."""
    experiment = store.find_experiment(library, search=True)
    if experiment is None:
        return None
    query = f"tags.`{TAG}spec_hash` = '{spec_hash}' and tags.`{TAG}kind` = 'search' and attributes.status = 'FINISHED'"
    runs = store.client.search_runs([experiment.experiment_id], query, max_results=1)
    if not runs:
        return None
    uri = runs[0].info.artifact_uri
    if uri.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))
    place = store.artifact_root / "fetched" / runs[0].info.run_id
    if not place.is_dir():
        place.mkdir(parents=True)
        store.client.download_artifacts(runs[0].info.run_id, "", str(place))
    return place
