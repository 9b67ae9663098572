"""Texts that MLflow's UI shows beside registered models, versions and searches, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from orchestrator.plan.expert_plan import ExpertPlan
from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_names
from orchestrator.report.search_content import choice_names, point_text
from orchestrator.report.search_tables import Record
from workers.expert_result import ExpertResult

_READS = {"text": "classifies one text", "pair": "classifies a pair of texts", "choice": "chooses among options",
          "generate": "generates a text", "chat": "answers in conversations"}  # fmt: skip
_METHODS = {"tt": "TT-LoRA", "lora": "LoRA"}
_MOST_NAMED, _LONGEST_NAME = 20, 40  # labels or tasks; characters of one


def describe_expert_model(library: str, expert: ExpertPlan) -> str:
    """Return the description of an expert's registered model: what it does, and how to use it."""
    job = expert.job
    names = [shorten(name, _LONGEST_NAME, placeholder="...") for name in job.data.label_names]
    labels = f" as {format_names(names, _MOST_NAMED)}" if job.classes > 1 else ""
    return (
        f"Expert of the library {library} for the task {job.task}: {_READS[job.data.kind]}{labels}, "
        f"on the frozen base {job.base.id}.\n\n"
        f"- Details: `ttmoe experts show {job.task} --library {library}`\n"
        f"- As a PEFT LoRA adapter: `ttmoe experts export {job.task} FOLDER --library {library}`\n"
        f"- Answers through the router: `ttmoe predict TEXT --library {library}`"
    )


def describe_expert(expert: ExpertPlan, result: ExpertResult) -> str:
    """Return the description of an expert's version: its adapter, its accuracy and its data."""
    job, counts = expert.job, {split: sum(rows.values()) for split, rows in expert.job.data.counts.items()}
    method = _METHODS.get(job.adapter.method, job.adapter.method)
    return (
        f"Test accuracy {result.metrics['test.accuracy']:.3f} on {counts['test']:,} rows "
        f"(most frequent answer: {job.data.majority:.3f}), trained on {counts['train']:,}. "
        f"{method} of rank {job.adapter.rank} with {result.parameters:,} parameters "
        f"(LoRA of rank 16: {expert.lora_parameters:,})."
    )


def describe_router_model(library: str) -> str:
    """Return the description of a router's registered model: what it does, and how to serve it."""
    return (
        f"Router of the library {library}: picks one expert for each input, or none for an unknown input.\n\n"
        f"- Serve: `mlflow models serve -m models:/{library}.router@champion --env-manager local`\n"
        f"- Load: `mlflow.pyfunc.load_model('models:/{library}.router@champion')`\n"
        f"- Ask: `ttmoe predict TEXT --library {library}`"
    )


def describe_router(plan: Plan, metrics: Mapping[str, Any]) -> str:
    """Return the description of a router's version.

    Args:
        plan: The plan whose experts the router routes to.
        metrics: The metrics of its evaluation.
    """
    text = (
        f"Routes to {len(plan.experts)} experts: {format_names(list(plan.experts), _MOST_NAMED)}. "
        f"On their test rows it picks the right expert for {metrics['test.routing_accuracy']:.3f}."
    )
    if "test.routed_accuracy" not in metrics:  # no task has rows with labels
        return text
    return (
        f"{text} Accuracy of the answers, as a mean over tasks: {metrics['test.routed_accuracy']:.3f}; of the experts "
        f"without routing: {metrics['test.alone_accuracy']:.3f}."
    )


def describe_search(records: Sequence[Record]) -> str:
    """Return the description of a finished search: what it recommends for each task."""
    lines = [f"- {record['task']}: {_recommended(record)}" for record in records[:_MOST_NAMED]]
    more = [f"- and {len(records) - _MOST_NAMED} more tasks"] if len(records) > _MOST_NAMED else []
    report = "The artifact `search.html` is its report; `ttmoe tune CONFIG --apply FILE` writes a config of it."
    return "\n".join(["Recommended by this search:", "", *lines, *more, "", report])


def _recommended(record: Record) -> str:
    if not (winner := record["winner"]):
        return "nothing, because no trial was trained to its end"
    seeds = f", mean of {winner['seeds']} seeds" if winner["seeds"] > 1 else ""
    point = point_text(winner["point"], choice_names(record))
    return f"{point}. Validation accuracy {winner['accuracy']:.3f}{seeds}, {winner['parameters']:,} parameters"
