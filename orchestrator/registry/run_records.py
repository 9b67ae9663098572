"""Read the state of a run from the store: the newest run of a library, and the runs of what it trains."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from orchestrator.registry.runs import OLD_PARENT_TAG, PARENT_TAG
from orchestrator.registry.store import TAG, Store, all_pages, check_name, to_datetime


@dataclass(frozen=True)
class RunRecord:
    """State of one run.

    Attributes:
        status: MLflow's status: RUNNING, FINISHED, FAILED or KILLED.
        tags: Tags without the prefix ``ttmoe.``.
        metrics: Last value of each metric.
        steps: Step of each metric's last value.
        last_metric_time: When the newest metric value was logged; None if there is none.
    """

    run_id: str
    name: str
    status: str
    began: datetime
    ended: datetime | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    steps: Mapping[str, int]
    last_metric_time: datetime | None


def newest_run(store: Store, library: str) -> RunRecord | None:
    """Return the parent run of the library's newest ``ttmoe run``, or None if there is none."""
    if (experiment := store.find_experiment(library)) is None:
        return None
    query = f"tags.`{TAG}kind` = 'run'"
    order = ["attributes.start_time DESC"]
    runs = store.client.search_runs([experiment.experiment_id], query, max_results=1, order_by=order)
    return _record(runs[0]) if runs else None


def run_record(store: Store, run_id: str) -> RunRecord:
    """Return the run with the given id."""
    return _record(store.client.get_run(run_id))


def child_runs(store: Store, library: str, parent: str) -> list[RunRecord]:
    """Return the runs of the experts, router or trials of the run ``parent``, by task. A query reads 1,000 runs."""
    check_name(parent, "run")
    if (experiment := store.find_experiment(library)) is None:
        return []
    ids, client = [experiment.experiment_id], store.client

    def tagged(tag: str) -> Iterator[Run]:
        query = f"tags.`{tag}` = '{parent}'"
        return all_pages(lambda token: client.search_runs(ids, query, max_results=1000, page_token=token))

    runs = [*tagged(TAG + PARENT_TAG), *tagged(OLD_PARENT_TAG)]
    return sorted(map(_record, runs), key=lambda run: run.tags.get("task", run.name))


def newest_search(store: Store, library: str) -> RunRecord | None:
    """Return the run of the library's search that is open, or else of its newest one; None if there is none."""
    if (experiment := store.find_experiment(library, search=True)) is None:
        return None
    query, order = f"tags.`{TAG}kind` = 'search'", ["attributes.start_time DESC"]
    runs = store.client.search_runs([experiment.experiment_id], query, max_results=100, order_by=order)
    opened = [run for run in runs if run.info.status == "RUNNING"]  # one that is continued keeps its start time
    return _record([*opened, *runs][0]) if runs else None


def trial_runs(store: Store, library: str, search: str | None = None) -> list[RunRecord]:
    """Return the runs of the trials of the library's searches, the oldest first. A query reads 1,000 runs.

    Args:
        store: An open store.
        library: Name of the library.
        search: Run of a search; None takes the trials of all.
    """
    if (experiment := store.find_experiment(library, search=True)) is None:
        return []
    query, order = f"tags.`{TAG}kind` = 'trial'", ["attributes.start_time ASC"]
    if search is not None:
        check_name(search, "run")
        query += f" and tags.`{TAG}{PARENT_TAG}` = '{search}'"

    def page(token: str | None) -> Any:
        ids = [experiment.experiment_id]
        return store.client.search_runs(ids, query, max_results=1000, order_by=order, page_token=token)

    return list(map(_record, all_pages(page)))


def planned_work(store: Store, run_id: str) -> dict[str, Any]:
    """Return the content of the run's ``plan.json``, or an empty dict if the artifact is missing."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return json.loads(Path(store.client.download_artifacts(run_id, "plan.json", scratch)).read_text())
        except (OSError, ValueError, MlflowException):
            return {}


def metric_history(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return every ``(step, value)`` of a metric by step; if a step was logged twice, only the later value."""
    history = sorted(store.client.get_metric_history(run_id, key), key=lambda metric: (metric.step, metric.timestamp))
    return list({metric.step: (metric.step, metric.value) for metric in history}.values())


def _record(run: Run) -> RunRecord:
    # MLflow's public API returns a metric's step only with one more query per run.
    metrics = run.data._metric_objs or []
    last_metric_time = max((metric.timestamp for metric in metrics), default=None)
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        began=to_datetime(run.info.start_time),
        ended=to_datetime(run.info.end_time) if run.info.end_time else None,
        tags={key.removeprefix(TAG): value for key, value in run.data.tags.items()},
        params=run.data.params,
        metrics={metric.key: metric.value for metric in metrics},
        steps={metric.key: metric.step for metric in metrics},
        last_metric_time=to_datetime(last_metric_time) if last_metric_time else None,
    )
