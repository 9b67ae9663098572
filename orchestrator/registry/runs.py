"""MLflow runs: one for each ``ttmoe run`` or search, and one for each spec hash, whose tag ``run`` names the former.

MLflow's own tag for this, ``mlflow.parentRunId``, would hide all experts below one closed row of the table of runs.
"""

from __future__ import annotations

import getpass
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from orchestrator.registry.pages import prepare_pages
from orchestrator.registry.store import TAG, Store, check_name, to_mlflow_tags

FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]
MetricRow = tuple[str, float, int, int]  # key, value, step, time in milliseconds since the epoch
PARENT_TAG, OLD_PARENT_TAG = "run", "mlflow.parentRunId"  # the second in older libraries


@dataclass(frozen=True)
class TrainingData:
    """The data set of a run, as MLflow's UI shows it.

    Attributes:
        name: Name of the task.
        digest: Start of the data's fingerprint, at most 36 characters.
        source_type: ``local``, ``hugging_face`` or ``wheel``.
        source: What locates the source, by key.
        columns: Names of the columns that the task reads.
        profile: Facts about the data, such as the number of rows.
    """

    name: str
    digest: str
    source_type: str
    source: dict[str, Any]
    columns: tuple[str, ...]
    profile: dict[str, Any]


def start_run(
    store: Store,
    library: str,
    name: str,
    tags: dict[str, Any],
    config_text: str,
    plan: dict[str, Any],
    *,
    search: bool = False,
    token: str = "",
) -> str:
    """Start the parent run of a ``ttmoe run``, or of a search.

    Args:
        store: An open store.
        library: Name of the library; its experiment is created if missing.
        name: Name of the run.
        tags: Tags of the run, without the prefix ``ttmoe.``.
        config_text: Content of the artifact ``config.yaml``.
        plan: Content of the artifact ``plan.json``.
        search: Start a search in the experiment of the library's searches.
        token: Unique text, the same in all repetitions of the call: of several runs with it only the last remains.

    Returns:
        The run id.
    """
    pages = store.experiment(library, search=search)
    prepare_pages(store, pages, library, search=search)
    experiment = pages.experiment_id
    kind = "search" if search else "run"
    # MLflow's client repeats a request if the response was lost, and so do the retries of this call.
    unique = {"token": token or uuid.uuid4().hex} if store.is_remote else {}
    run_id = store.client.create_run(
        experiment, run_name=name, tags=_run_tags(kind, library, {**tags, **unique})
    ).info.run_id
    for key, value in unique.items():
        for duplicate in store.client.search_runs([experiment], f"tags.`{TAG}{key}` = '{value}'"):
            if duplicate.info.run_id != run_id:
                store.client.delete_run(duplicate.info.run_id)
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
    is_new: bool = False,
    metrics: Iterable[MetricRow] = (),
    data: TrainingData | None = None,
    name: str = "",
    tags: dict[str, Any] | None = None,
) -> str:
    """Continue the run of a task's spec as a part of ``parent``, or start one.

    Args:
        store: An open store.
        library: Name of the library.
        parent: Run id of the ``ttmoe run`` or of the search, or None.
        task: Name of the task; ``router`` for the router.
        spec_hash: Hash of the spec.
        params: Parameters to log; those that the run already has are not changed.
        search: Make the run a trial in the experiment of the library's searches. Each search has its own.
        is_new: Whether the spec is known to have no run, so that none is searched for.
        metrics: Metric values to log in the same request; see ``log_metrics``.
        data: The run's data set.
        name: Name of a new run; by default the task.
        tags: Further tags to set, see ``tag_run``.

    Returns:
        The run id. The run's status is RUNNING.
    """
    check_name(spec_hash, "spec hash")
    check_name(task, "task")
    experiment = store.experiment_id(library, search=search)
    part_of = parent if search else None
    if not (runs := [] if is_new else _find_runs(store, experiment, task, spec_hash, part_of)):
        first_tags = {"spec_hash": spec_hash, "task": task} | ({PARENT_TAG: parent} if parent else {}) | (tags or {})
        run_tags = _run_tags("trial" if search else "expert", library, first_tags)
        runs = [store.client.create_run(experiment, run_name=name or task, tags=run_tags)]
        if store.may_duplicate:
            runs = _find_runs(store, experiment, task, spec_hash, part_of)
    run, *duplicates = runs
    for duplicate in duplicates:  # only a repeated request creates duplicates
        store.client.delete_run(duplicate.info.run_id)
    if run.info.status != "RUNNING":
        store.client.update_run(run.info.run_id, status="RUNNING")
    if OLD_PARENT_TAG in run.data.tags:
        store.client.delete_tag(run.info.run_id, OLD_PARENT_TAG)
    moved = parent and run.data.tags.get(TAG + PARENT_TAG) != parent
    changed = {key: value for key, value in (tags or {}).items() if run.data.tags.get(TAG + key) != str(value)}
    changed |= {PARENT_TAG: parent} if moved else {}
    missing = [Param(key, str(value)) for key, value in params.items() if key not in run.data.params]
    store.artifact_uris[run.info.run_id] = run.info.artifact_uri
    # Without any of them, no request is sent.
    store.client.log_batch(run.info.run_id, _metrics(metrics), missing, _tags(changed))
    if data:
        store.client.log_inputs(run.info.run_id, [_dataset_input(data)])
    return run.info.run_id


def log_metrics(
    store: Store,
    run_id: str,
    rows: Iterable[MetricRow],
    tags: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
) -> None:
    """Log metric values, and tags and parameters in the same request; a row that is logged twice is stored once.

    Args:
        store: An open store.
        run_id: The run.
        rows: Tuples ``(key, value, step, time)``, the time in milliseconds since the epoch. NaN values are stored.
        tags: Tags, see ``tag_run``.
        params: Parameters; those that the run has must have the same value.
    """
    parameters = [Param(key, str(value)) for key, value in (params or {}).items()]
    store.client.log_batch(run_id, _metrics(rows), parameters, _tags(tags or {}))


def tag_run(store: Store, run_id: str, tags: dict[str, Any]) -> None:
    """Set tags of a run. The prefix ``ttmoe.`` is added to keys other than MLflow's own (``mlflow.*``)."""
    store.client.log_batch(run_id, tags=_tags(tags))


def log_text(store: Store, run_id: str, text: str, name: str) -> None:
    """Write ``text`` to the artifact ``name``, a path relative to the run's artifacts."""
    store.client.log_text(run_id, text, name)


def finish_run(store: Store, run_id: str, status: FinalStatus) -> None:
    """End a run with the given status."""
    store.client.set_terminated(run_id, status)


def _metrics(rows: Iterable[MetricRow]) -> list[Metric]:
    return [Metric(key, float(value), int(time), int(step)) for key, value, step, time in rows]


def _tags(tags: dict[str, Any]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in to_mlflow_tags(tags).items()]


def _dataset_input(data: TrainingData) -> DatasetInput:
    columns = [{"type": "string", "name": name, "required": True} for name in data.columns]
    schema = json.dumps({"mlflow_colspec": columns})
    dataset = Dataset(
        data.name, data.digest, data.source_type, json.dumps(data.source), schema, json.dumps(data.profile)
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _find_runs(store: Store, experiment: str, task: str, spec_hash: str, parent: str | None) -> list[Run]:
    """Return the runs of a task's spec, oldest first; those of a ``parent`` alone if there is one."""
    # Two tasks with the same data under two names have the same spec hash, but different files.
    query = f"tags.`{TAG}spec_hash` = '{spec_hash}' and tags.`{TAG}task` = '{task}'"
    query += f" and tags.`{TAG}{PARENT_TAG}` = '{parent}'" if parent else ""
    return store.client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])


def _run_tags(kind: str, library: str, tags: dict[str, Any]) -> dict[str, str]:
    common = {"kind": kind, "library": library, "mlflow.source.name": "ttmoe", "mlflow.user": _user()}
    return to_mlflow_tags(common | tags)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user id may have no passwd entry
        return "unknown"
