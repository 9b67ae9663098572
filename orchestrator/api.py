"""The commands ``data``, ``plan``, ``run``, ``tune``, ``submit``, ``status`` and ``predict`` as functions.

They return values, and raise InputError, WorkFailedError or ClusterError where the command line prints an error. They
print nothing without a console, end no process, and leave no signal handlers. torch, Ray and MLflow are imported when
they are called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.data_view.library_view import LibraryView
    from orchestrator.plan.planned_library import PlannedLibrary
    from orchestrator.progress.status import RunStatus
    from orchestrator.run.run_outcome import RunOutcome
    from orchestrator.run.tune_driver import TuneOutcome
    from orchestrator.submit.submission import Submission

ConfigSource = str | Path | Mapping[str, Any]
"""Path of a config, name of a packaged recipe, or the content of a config."""
Overrides = Sequence[str] | Mapping[str, Any]
"""Overrides of a config: texts such as ``train.steps=100``, or values by dotted key."""


def data(
    config: ConfigSource,
    task: str | None = None,
    overrides: Overrides = (),
    *,
    console: Console | None = None,
) -> LibraryView:
    """View the data of a config as training will see it: rows by split and class, and what was left out and why.

    Args:
        config: The config.
        task: The task; None for all.
        overrides: Overrides, as ``plan`` takes them.
        console: Shows that it is reading.

    Returns:
        The view. Its ``to_dict()`` has what ``ttmoe data --json`` prints.

    Raises:
        InputError: If there is no such task, or the base or the data cannot be used.
    """
    from orchestrator.config.loading import load_config
    from orchestrator.data_view.library_view import view_library

    return view_library(load_config(config, _overrides(overrides)), task, console)


def plan(
    config: ConfigSource,
    overrides: Overrides = (),
    *,
    nodes: Sequence[str] = (),
    console: Console | None = None,
) -> PlannedLibrary:
    """Plan a config: what a run would do and why, its memory and time. No work is started.

    Args:
        config: The config.
        overrides: Overrides such as ``train.steps=100``, or a mapping such as ``{"train.steps": 100}``.
        nodes: Nodes of a cluster that is not here, such as ``2x8x80GB``; by default those that there are.
        console: Shows that it is planning.

    Returns:
        The plan. Its ``to_dict()`` has what ``ttmoe plan --json`` prints. If the work fits no node, its attribute
        ``problem`` is the error that a run would raise.

    Raises:
        InputError: If the config cannot be run.
    """
    from orchestrator.config.loading import load_config

    loaded = load_config(config, _overrides(overrides))
    from orchestrator.plan.nodes import declared_nodes
    from orchestrator.plan.planned_library import plan_library

    return plan_library(loaded, console, declared_nodes(_listed(nodes)) or None)


def run(config: ConfigSource, overrides: Overrides = (), *, console: Console | None = None) -> RunOutcome:
    """Train and register the experts and the router of a config. Called again after any end, it continues.

    Args:
        config: The config.
        overrides: Overrides such as ``train.steps=100``, or a mapping such as ``{"train.steps": 100}``.
        console: Prints the progress, the result and warnings.

    Returns:
        The experts, the router and the report.

    Raises:
        InputError: If the config cannot be run, or fits no node; raised before any work.
        WorkFailedError: If experts failed, or the store stayed unavailable. It is a PartFailedError if the router
            serves the other experts. Its ``outcome`` is what would have been returned, as far as the run came.
        ClusterError: If the cluster cannot be used.
    """
    from orchestrator.config.loading import load_config

    loaded = load_config(config, _overrides(overrides))
    from orchestrator.run.driver import run_library

    return run_library(loaded, console or _quiet())


def tune(
    config: ConfigSource,
    overrides: Overrides = (),
    *,
    tasks: Sequence[str] = (),
    console: Console | None = None,
) -> TuneOutcome:
    """Search for TT ranks and shapes that reach a high accuracy with few parameters. Called again, it continues.

    Args:
        config: The config.
        overrides: Overrides such as ``search.trials=20``.
        tasks: Tasks to search on; by default those of the config's search, or all.
        console: Prints the progress, the result and warnings.

    Returns:
        What was found for each task, and for all of them.

    Raises:
        InputError: If the config cannot be searched, or a trial fits no node; raised before any work.
        WorkFailedError: If no trial of a task is measured, or the store stayed unavailable.
        ClusterError: If the cluster cannot be used.
    """
    from orchestrator.run.tune_driver import TuneRequest, tune_library

    request = TuneRequest(config, _overrides(overrides), _listed(tasks))
    return tune_library(request.load(), console or _quiet())


def submit(
    config: ConfigSource,
    cluster: str,
    overrides: Overrides = (),
    *,
    command: Literal["run", "tune"] = "run",
    follow: bool = False,
    console: Console | None = None,
) -> Submission:
    """Run a config on a cluster, as a job that does not need this machine. Returns when it is planned there.

    Args:
        config: The config.
        cluster: Cluster: a name in the config or in ``clusters.yaml``, or ``http://HOST:8265``.
        overrides: Overrides such as ``train.steps=100``, or a mapping such as ``{"train.steps": 100}``.
        command: What the job does with the config: ``run``, or ``tune`` for its search.
        follow: Wait until the job ends.
        console: Prints the output of the job.

    Returns:
        The job. Called again, the function finds it, or continues after one that failed.

    Raises:
        InputError: If the job cannot be submitted, or its plan fails on the cluster.
        WorkFailedError: If the job fails while it is followed.
        ClusterError: If the cluster cannot be used.
    """
    from orchestrator.config.clusters import find_cluster
    from orchestrator.config.loading import load_config

    loaded = load_config(config, _overrides(overrides))
    profile = find_cluster(cluster, loaded.config.clusters)
    from orchestrator.submit.submission import submit_config

    submission = submit_config(loaded, profile, console or _quiet(), command=command, follow=follow)
    if submission.problem:
        raise submission.problem
    return submission


def status(library: str | None = None, *, root: str | Path | None = None, uri: str | None = None) -> RunStatus:
    """Return the progress of a library's newest run and search, while they are active or after them.

    Args:
        library: The library; None selects the one that ran last.
        root: Folder that contains the runs (``storage.root``); by default ``runs``.
        uri: MLflow store; by default the one in ``root``, or else that of MLFLOW_TRACKING_URI, or the one in ``runs``.

    Returns:
        The status. Its ``to_dict()`` has what ``ttmoe status --json`` prints.

    Raises:
        InputError: If there is no such library, or it has neither.
    """
    from orchestrator.config.store_address import find_store
    from orchestrator.progress.status import read_status
    from orchestrator.registry.library import open_library

    store = find_store(root=Path(root) if root else None, uri=uri)
    return read_status(*open_library(store, library, searches=True))


def predict(
    rows: str | Mapping[str, Any] | Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, str]]],
    *,
    library: str | None = None,
    root: str | Path | None = None,
    uri: str | None = None,
    text: str | None = None,
    second: str | None = None,
    choices: Sequence[str] = (),
    batch_size: int = 64,
    device: str = "auto",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Predict task and label of texts, or of rows with columns.

    Args:
        rows: Texts, or mappings with a text and, for rows that need them, a second text or a list of options, or with
            the ``messages`` of a conversation; or one of them. A list of messages may stand for its mapping.
        library: The library; None selects the one that ran last.
        root: Folder that contains the runs, as in ``status``.
        uri: MLflow store, as in ``status``.
        text: Column of the text; by default ``text``.
        second: Column of the second text; by default ``second``, if it exists.
        choices: Column of lists of options, or a column for each option; by default ``choices``, if it exists.
        batch_size: Rows in a batch.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Prints a warning if the router is older than its experts.

    Returns:
        The rows in their order, each with its columns and the answer, as ``ttmoe predict --json`` prints them.

    Raises:
        InputError: If a row cannot be answered, or the library has no router.
    """
    from orchestrator.config.store_address import find_store
    from orchestrator.predict.request import PredictRequest
    from orchestrator.predict.texts import answer_rows
    from orchestrator.predict.writers import with_answer

    store = find_store(root=Path(root) if root else None, uri=uri)
    request = PredictRequest(
        text=text, second=second, choices=tuple(_listed(choices)), batch_size=batch_size, device=device,
        library=library, store=store,
    )  # fmt: skip
    return [with_answer(row, answer) for row, answer in answer_rows(request, _listed(rows), console or _quiet())]


def _overrides(values: Any) -> list[str]:
    """Return overrides as texts; they may be a mapping of keys to values."""
    if isinstance(values, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return _listed(values)


def _listed(values: Any) -> list[Any]:
    """Return values as a list, and one text or row as a list of it."""
    return [values] if isinstance(values, str | Mapping) else list(values)


def _quiet() -> Console:
    from rich.console import Console

    return Console(quiet=True)
