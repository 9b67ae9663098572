"""How far a run has come, as the store tells it: the newest parent run of a library and its children."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from orchestrator.registry.store import TAG, Store, all_pages, check_name, to_datetime


@dataclass(frozen=True)
class RunRecord:
    """One run: tags without our prefix, the last value of each metric with its step and when it was written."""

    run_id: str
    name: str
    status: str
    began: datetime
    ended: datetime | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    steps: Mapping[str, int]
    heard: datetime | None


def newest_run(store: Store, library: str) -> RunRecord | None:
    """The library's last ``ttmoe run``, or None where there was none."""
    if (experiment := store.find_experiment(library)) is None:
        return None
    query = f"tags.`{TAG}kind` = 'run'"
    order = ["attributes.start_time DESC"]
    found = store.client.search_runs([experiment.experiment_id], query, max_results=1, order_by=order)
    return _record(found[0]) if found else None


def run_record(store: Store, run_id: str) -> RunRecord:
    """One run by its id."""
    return _record(store.client.get_run(run_id))


def child_runs(store: Store, library: str, parent: str) -> list[RunRecord]:
    """The runs below ``parent``, by task; one query for each thousand."""
    check_name(parent, "run")
    if (experiment := store.find_experiment(library)) is None:
        return []
    ids, query, client = [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", store.client
    found = all_pages(lambda token: client.search_runs(ids, query, max_results=1000, page_token=token))
    return sorted(map(_record, found), key=lambda run: run.tags.get("task", run.name))


def planned_work(store: Store, run_id: str) -> dict[str, Any]:
    """The run's plan.json: what it had to do; empty where it was not written."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return json.loads(Path(store.client.download_artifacts(run_id, "plan.json", scratch)).read_text())
        except (OSError, ValueError, MlflowException):
            return {}


def metric_history(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    """Every ``(step, value)`` of a metric, by step; of a step that was taken twice, the later value."""
    history = sorted(store.client.get_metric_history(run_id, key), key=lambda each: (each.step, each.timestamp))
    return list({each.step: (each.step, each.value) for each in history}.values())


def _record(run: Run) -> RunRecord:
    # The only way to a metric's step without one more query for each run.
    last = run.data._metric_objs or []
    heard = max((metric.timestamp for metric in last), default=None)
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        began=to_datetime(run.info.start_time),
        ended=to_datetime(run.info.end_time) if run.info.end_time else None,
        tags={key.removeprefix(TAG): value for key, value in run.data.tags.items()},
        params=run.data.params,
        metrics={metric.key: metric.value for metric in last},
        steps={metric.key: metric.step for metric in last},
        heard=to_datetime(heard) if heard else None,
    )
