"""MLflow runs: one parent per ``ttmoe run``, below it one child per spec hash, and what is logged to them."""

from __future__ import annotations

import getpass
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Metric, Param, Run, RunTag

from orchestrator.registry.store import TAG, Store, check_name, to_mlflow_tags

FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]
MetricRow = tuple[str, float, int, int]
_PER_BATCH = 1000  # MLflow's limits for one request
_PARAMS_PER_BATCH = 100


def start_run(
    store: Store,
    library: str,
    name: str,
    tags: dict[str, Any],
    config_text: str,
    plan: dict[str, Any],
    *,
    search: bool = False,
) -> str:
    """Start the parent run of one ``ttmoe run`` (or search), its config and plan as artifacts; its id."""
    experiment = store.experiment(library, search=search).experiment_id
    kind = "search" if search else "run"
    # The client repeats a request whose answer was lost: by its token a double is known.
    token = {"token": uuid.uuid4().hex} if store.is_remote else {}
    run = store.client.create_run(experiment, run_name=name, tags=_tags(kind, library, {**tags, **token}))
    for key, value in token.items():
        for double in store.client.search_runs([experiment], f"tags.`{TAG}{key}` = '{value}'"):
            if double.info.run_id != run.info.run_id:
                store.client.delete_run(double.info.run_id)
    run_id = run.info.run_id
    log_text(store, run_id, config_text, "config.yaml")
    log_text(store, run_id, json.dumps(plan, indent=1, sort_keys=True), "plan.json")
    return run_id


def expert_run(
    store: Store,
    library: str,
    parent: str | None,
    task: str,
    spec_hash: str,
    params: dict[str, Any],
    *,
    search: bool = False,
) -> str:
    """The child run of a task's spec: the one there is, continued below ``parent``, or a new one; its run id.

    ``search`` makes it a trial in the experiment of the library's searches.
    """
    check_name(spec_hash, "spec hash")
    check_name(task, "task")
    experiment = store.experiment(library, search=search).experiment_id
    if not (runs := _of_spec(store, experiment, task, spec_hash)):
        tags = {"spec_hash": spec_hash, "task": task} | ({"mlflow.parentRunId": parent} if parent else {})
        kind = "trial" if search else "expert"
        runs = [store.client.create_run(experiment, run_name=task, tags=_tags(kind, library, tags))]
        if store.is_remote:  # the client repeats a request whose answer was lost
            runs = _of_spec(store, experiment, task, spec_hash)
    run, *doubles = runs
    for double in doubles:  # only a request that was sent twice can make them
        store.client.delete_run(double.info.run_id)
    if run.info.status != "RUNNING":
        store.client.update_run(run.info.run_id, status="RUNNING")
    if parent and run.data.tags.get("mlflow.parentRunId") != parent:
        store.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
    missing = [Param(key, str(value)) for key, value in params.items() if key not in run.data.params]
    for start in range(0, len(missing), _PARAMS_PER_BATCH):
        store.client.log_batch(run.info.run_id, params=missing[start : start + _PARAMS_PER_BATCH])
    return run.info.run_id


def log_metrics(store: Store, run_id: str, rows: Iterable[MetricRow]) -> None:
    """Log ``(key, value, step, time in ms)`` rows. Sending a row twice leaves one; NaN stays NaN."""
    metrics = [Metric(key, float(value), int(when), int(step)) for key, value, step, when in rows]
    for start in range(0, len(metrics), _PER_BATCH):
        store.client.log_batch(run_id, metrics=metrics[start : start + _PER_BATCH])


def tag_run(store: Store, run_id: str, tags: dict[str, Any]) -> None:
    """Set tags under ``ttmoe.``, but for MLflow's own (``mlflow.note.content`` shows on a run's page)."""
    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in to_mlflow_tags(tags).items()])


def log_text(store: Store, run_id: str, text: str, name: str) -> None:
    """Write ``text`` as the artifact ``name`` (a path within the run)."""
    store.client.log_text(run_id, text, name)


def log_file(store: Store, run_id: str, path: Path, folder: str = "") -> None:
    """Copy a file, or a folder's content, to the run's artifacts below ``folder``."""
    if path.is_dir():
        store.client.log_artifacts(run_id, str(path), folder or None)
    else:
        store.client.log_artifact(run_id, str(path), folder or None)


def finish_run(store: Store, run_id: str, status: FinalStatus) -> None:
    """End a run."""
    store.client.set_terminated(run_id, status)


def _of_spec(store: Store, experiment: str, task: str, spec_hash: str) -> list[Run]:
    # Two tasks may have one spec: the same data under two names. Their files differ, so their runs do.
    query = f"tags.`{TAG}spec_hash` = '{spec_hash}' and tags.`{TAG}task` = '{task}'"
    return store.client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])


def _tags(kind: str, library: str, tags: dict[str, Any]) -> dict[str, str]:
    own = {"kind": kind, "library": library, "mlflow.source.name": "ttmoe", "mlflow.user": _user()}
    return to_mlflow_tags(own | tags)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that no passwd file names
        return "unknown"
