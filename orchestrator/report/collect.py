"""Collect the content of a report from the plan and from MLflow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from statistics import fmean
from typing import Any

from orchestrator.config.loading import resolved_yaml
from orchestrator.plan.expert_plan import ExpertPlan
from orchestrator.plan.planning import Plan
from orchestrator.registry import Registry, RunRecord, Version
from orchestrator.registry.artifacts import EVALUATION, TRIALS
from orchestrator.report.content import Curve, ExpertRow, Points, ResourceUsage, RoutingReport, RunReport, SearchReport
from orchestrator.report.incidents import EXPERT_STAGE_PREFIX, Incident
from orchestrator.report.search_tables import read_search_records
from workers.expert_result import CUT_ROWS, HEAD_PARAMETERS

MAX_CURVES = 60  # experts whose metric histories are read, with two queries each
MAX_POINTS = 200  # points of a curve
# Seconds for reading histories. MLflow returns whole ones, so a store may be slow; the most interesting come first.
MAX_READING_SECONDS = 10.0
_STATES = {"FINISHED": "registered", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "stopped"}


def collect_report(
    plan: Plan,
    registry: Registry,
    run_id: str,
    incidents: Iterable[Incident] = (),
    usage: ResourceUsage | None = None,
    *,
    router_hash: str | None = None,
    status: str | None = None,
) -> RunReport:
    """Collect the report of a run, however it ended.

    Args:
        plan: The plan of the run.
        registry: The registry.
        run_id: Id of the MLflow run.
        incidents: The failures of the run.
        usage: What the worker pool did.
        router_hash: Spec hash of the run's router; None takes the plan's.
        status: The status with which the run ends; None reads it from MLflow, where it is RUNNING until the end.
    """
    library, run, incidents = plan.folders.library, registry.run_record(run_id), tuple(incidents)
    children = {child.tags.get("task", ""): child for child in registry.child_runs(library, run_id)}
    versions = {(version.task, version.spec_hash): version for version in registry.experts(library, every=True)}
    router = registry.find_router(library, router_hash or plan.router_hash)
    evaluation = _evaluation(registry, router)
    rows = _rows(plan, versions, children, evaluation, incidents)
    runs = {row.task: _training_run(row, plan, versions, children) for row in rows}
    return RunReport(
        library=library,
        status=status or run.status,
        base=plan.base.id,
        base_digest=plan.base.digest,
        version=run.tags.get("version", ""),
        commit=run.tags.get("mlflow.source.git.commit", ""),
        began=run.began,
        seconds=((run.ended or datetime.now(UTC)) - run.began).total_seconds(),
        experts=rows,
        curves=_curves(registry, rows, runs),
        incidents=incidents,
        routing=_routing(router, evaluation),
        search=_search(plan, registry),
        usage=usage or ResourceUsage(),
        config=resolved_yaml(plan.config),
        facts=_facts(run),
    )


def _rows(
    plan: Plan,
    versions: Mapping[tuple[str, str], Version],
    children: Mapping[str, RunRecord],
    evaluation: Mapping[str, Any],
    incidents: Iterable[Incident],
) -> tuple[ExpertRow, ...]:
    failures = Counter(incident.key for incident in incidents if incident.stage.startswith(EXPERT_STAGE_PREFIX))
    return tuple(
        _row(task, expert, versions.get((task, expert.job.spec_hash)), children.get(task), evaluation, failures[task])
        for task, expert in plan.experts.items()
    )


def _row(
    task: str,
    expert: ExpertPlan,
    version: Version | None,
    child: RunRecord | None,
    evaluation: Mapping[str, Any],
    failures: int,
) -> ExpertRow:
    metrics: Mapping[str, float] = version.metrics if version else child.metrics if child else {}
    state = _state(version, child)
    test = evaluation.get("tasks", {}).get(task)
    labelled = expert.job.data.labelled
    steps = metrics.get("steps") or (child.steps.get("train.loss") if child else None)
    ended = state in ("registered", "cached")
    return ExpertRow(
        task=task,
        state=state,
        version=version.version if version else None,
        classes=len(expert.labels or expert.job.data.label_names) or None,
        majority=expert.job.data.majority if labelled else None,
        accuracy=test["alone"] if test and expert.named else metrics.get("test.accuracy"),
        routed=test["answered_right"] / test["rows"] if test and test["rows"] and labelled else None,
        parameters=expert.job.parameters,
        head=_whole(metrics.get(HEAD_PARAMETERS)),
        lora_parameters=expert.lora_parameters,
        steps=_whole(steps or None),
        seconds=metrics.get("seconds.job", metrics.get("seconds.training")),
        attempts=failures + 1 if ended else max(1, failures),
        error=child.tags.get("error", "") if child and not ended else "",
        rows=expert.job.data.rows,
        removed=expert.job.data.removed,
        cut=_whole(metrics.get(CUT_ROWS)),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _state(version: Version | None, child: RunRecord | None) -> str:
    if version:
        return "registered" if child else "cached"
    return _STATES[child.status] if child else "waiting"


def _training_run(
    row: ExpertRow, plan: Plan, versions: Mapping[tuple[str, str], Version], children: Mapping[str, RunRecord]
) -> str | None:
    """Return the id of the run with the expert's metric history; a cached expert has it in the run that trained it."""
    if row.task in children:
        return children[row.task].run_id
    version = versions.get((row.task, plan.experts[row.task].job.spec_hash))
    return version.run_id if version else None


def _curves(registry: Registry, rows: Sequence[ExpertRow], runs: Mapping[str, str | None]) -> tuple[Curve, ...]:
    curves: list[Curve] = []
    start = time.monotonic()
    for row in choose_curves(rows, MAX_CURVES):
        if time.monotonic() - start > MAX_READING_SECONDS:
            break
        if run_id := runs[row.task]:
            loss = downsample(registry.metric_history(run_id, "train.loss"), MAX_POINTS, fmean)
            accuracy = downsample(registry.metric_history(run_id, "validation.accuracy"), MAX_POINTS, itemgetter(-1))
            curves += [Curve(row.task, loss, accuracy)] if loss or accuracy else []
    return tuple(curves)


def choose_curves(rows: Sequence[ExpertRow], count: int) -> list[ExpertRow]:
    """Choose the experts whose curves the report reads, at most ``count``; experts that wait are left out.

    Of a longer list, a quarter are the least accurate, a quarter the slowest, and the others are evenly spaced.
    """
    started = [row for row in rows if row.state != "waiting"]
    if len(started) <= count:
        return started
    worst = sorted(started, key=lambda row: row.accuracy if row.accuracy is not None else 2.0)[: count // 4]
    slowest = sorted(started, key=lambda row: -(row.seconds or 0))[: count // 4]
    first = list({row.task: row for row in [*worst, *slowest]}.values())
    names = {row.task for row in first}
    rest = [row for row in started if row.task not in names]
    others = count - len(first)
    return first + [rest[i * len(rest) // others] for i in range(others)]


def downsample(points: Sequence[tuple[int, float]], count: int, reduce: Callable[[Sequence[float]], float]) -> Points:
    """Reduce a curve to at most ``count`` points.

    Args:
        points: Pairs of step and value, in the order of steps.
        count: Largest number of points.
        reduce: Reduces the values of consecutive points to one, which is placed at their last step.
    """
    size = -(-len(points) // count) if points else 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((float(part[-1][0]), reduce([value for _, value in part])) for part in parts)


def _evaluation(registry: Registry, router: Version | None) -> dict[str, Any]:
    return registry.read_json(router, EVALUATION) if router else {}


def _routing(router: Version | None, evaluation: Mapping[str, Any]) -> RoutingReport | None:
    if router is None:
        return None
    return RoutingReport(
        router.version,
        evaluation["routing_accuracy"],
        sum(test["rows"] for test in evaluation["tasks"].values()),
        tuple(evaluation["confusion_tasks"]),
        tuple(tuple(row) for row in evaluation["confusion"]),
        evaluation.get("metrics", {}),
        tuple(evaluation.get("depths", ())),
        tuple(tuple(group) for group in evaluation.get("groups", ())),
    )


def _search(plan: Plan, registry: Registry) -> SearchReport | None:
    if plan.config.search is None or plan.search_hash is None:
        return None
    folder = registry.search_artifacts(plan.folders.library, plan.search_hash)
    if folder is None:
        return None
    record = read_search_records(folder / TRIALS)[0]
    return SearchReport(record["task"], tuple(record["trials"]), tuple(record["front"]))


def _facts(run: RunRecord) -> dict[str, str]:
    job = run.tags.get("ray_job", "")
    return {"run": f"{run.name} ({run.run_id})"} | ({"Ray job": job} if job else {})
