"""Stage 1: one unit of work for each expert that is not registered yet, in parallel; each is registered as it ends."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.jobs import LOG, Unit, run_units
from orchestrator.live import LiveView
from orchestrator.plan import ExpertPlan, Plan
from orchestrator.registry import Registry, Version
from workers.expert_job import ExpertResult, finished_result, run_expert
from workers.progress import Progress

BETWEEN_LOGS = 5.0  # seconds between writes of metrics to the tracking store


class MetricLog:
    """Metrics on their way to the tracking store, in bundles."""

    def __init__(self, registry: Registry, runs: dict[str, str]) -> None:
        self.registry, self.runs = registry, runs
        self.waiting: dict[str, list[tuple[str, float, int, int]]] = {}
        self.sent = time.monotonic()

    def add(self, key: str, when: float, progress: Progress) -> None:
        """Keep a report's metrics."""
        rows = [(name, value, progress.step, int(when * 1000)) for name, value in progress.metrics.items()]
        self.waiting.setdefault(key, []).extend(rows)

    def flush(self, key: str | None = None, *, force: bool = False) -> None:
        """Send what waits, of one run or of all, if it is time."""
        if not force and time.monotonic() - self.sent < BETWEEN_LOGS:
            return
        for name in [key] if key else list(self.waiting):
            if rows := self.waiting.pop(name, []):
                self.registry.log_metrics(self.runs[name], rows)
        self.sent = time.monotonic()


def train_experts(
    plan: Plan, missing: list[str], registry: Registry, parent: str, view: LiveView
) -> dict[str, Exception]:
    """Train and register the ``missing`` experts; what failed, by task. Interrupted, it marks the open runs KILLED."""
    library = plan.layout.library
    runs = {
        task: registry.expert_run(library, parent, task, plan.experts[task].job.spec_hash, _params(plan.experts[task]))
        for task in missing
    }
    view.stage("Stage 1: experts", "expert", {task: expert.job.train.steps for task, expert in plan.experts.items()})
    for task in plan.experts.keys() - runs.keys():
        view.state(task, "cached")
    failed: dict[str, Exception] = {}
    try:
        units = []
        for task in missing:
            job = plan.experts[task].job
            if result := finished_result(Path(job.folder), job.spec_hash):
                _register(plan, result, registry, runs.pop(task), view)
            else:
                units.append(_unit(plan, task))
        failed = _follow(plan, units, registry, runs, view)
    finally:
        for task, run in runs.items():
            registry.finish_run(run, "FAILED" if task in failed else "KILLED")
    return failed


def _follow(
    plan: Plan, units: list[Unit], registry: Registry, runs: dict[str, str], view: LiveView
) -> dict[str, Exception]:
    log, failed = MetricLog(registry, dict(runs)), {}
    for news in run_units(units, at_once=plan.config.resources.max_parallel):
        log.flush()
        if news is None:
            continue
        for when, progress in news.progress:
            log.add(news.key, when, progress)
            view.progress(news.key, progress)
        if news.done:
            log.flush(news.key, force=True)
            if news.error is None:
                _register(plan, news.result, registry, runs.pop(news.key), view)
            else:
                failed[news.key] = news.error
                _record_failure(plan, news.key, news.error, registry, runs[news.key], view)
    log.flush(force=True)
    return failed


def _unit(plan: Plan, task: str) -> Unit:
    job, resources = plan.experts[task].job, plan.config.resources
    return Unit(task, run_expert, (job,), Path(job.folder), resources.cpus_per_expert, resources.gpus)


def _register(plan: Plan, result: ExpertResult, registry: Registry, run: str, view: LiveView) -> Version:
    expert, folder = plan.experts[result.task], Path(result.folder)
    registry.log_metrics(
        run,
        [
            (key, value, 0, int(time.time() * 1000))
            for key, value in result.metrics.items()
            if not key.startswith("validation.")
        ],
    )
    if (folder / LOG).is_file():
        registry.log_file(run, folder / LOG)
    accuracy = result.metrics["test.accuracy"]
    version = registry.register_expert(
        plan.layout.library,
        result.task,
        result.spec_hash,
        folder,
        run,
        _tags(expert, result),
        metrics=result.metrics,
        description=f"{expert.job.adapter.method} adapter for {result.task}: test accuracy {accuracy:.3f}",
    )
    registry.finish_run(run, "FINISHED")
    view.state(result.task, "registered", f"v{version.version}", {"test.accuracy": accuracy})
    return version


def _record_failure(plan: Plan, task: str, error: Exception, registry: Registry, run: str, view: LiveView) -> None:
    log = Path(plan.experts[task].job.folder, LOG)
    if log.is_file():
        registry.log_file(run, log)
    registry.tag_run(run, {"error": f"{type(error).__name__}: {error}"[:2000]})
    view.state(task, "failed", f"{str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _params(expert: ExpertPlan) -> dict[str, object]:
    job = expert.job
    params = {f"train.{key}": value for key, value in job.train.model_dump().items()}
    params |= {f"shape.{role}": shape for role, shape in expert.shapes.items()}
    return params | {
        "adapter.method": job.adapter.method,
        "adapter.rank": job.adapter.rank,
        "head": job.head,
        "adapter.alpha": job.adapter.alpha,
        "adapter.targets": ",".join(job.adapter.targets),
        "adapter.first_layer": job.adapter.first_layer,
        "parameters": job.parameters,
        "base": job.base.id,
        "rows.train": sum(job.data.counts["train"].values()),
    }


def _tags(expert: ExpertPlan, result: ExpertResult) -> dict[str, object]:
    base, adapter = expert.job.base, expert.job.adapter
    return {
        "base": f"{base.source}:{base.id}",
        "base_revision": base.revision,
        "base_digest": base.digest,
        "method": adapter.method,
        "rank": adapter.rank,
        "shape": "; ".join(f"{k}={v}" for k, v in expert.shapes.items()),
        "parameters": result.parameters,
        "lora16_parameters": expert.lora_parameters,
        "data_fingerprint": expert.job.data.fingerprint,
        "weights_digest": result.weights_digest,
        "metric": f"test.accuracy={result.metrics['test.accuracy']:.4f}",
    }
