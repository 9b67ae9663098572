"""The summary at the end of a run: tables of the library, paths of the outputs and next steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.store_address import mask_uri
from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_names
from orchestrator.registry import Registry, Version
from orchestrator.registry.artifacts import CONFUSION_PLOT, EVALUATION, PARETO_PLOT, SEARCH_REPORT, TRIALS
from orchestrator.report.next_steps import suggest_commands
from orchestrator.report.search_tables import front_table, read_search_records
from ttmoe.generating_kinds import GENERATING_KINDS
from workers.expert_result import HEAD_PARAMETERS

CONFUSION, PARETO, SEARCH_PAGE = "routing, confusion", "search, Pareto front", "search, report"


def show_summary(
    plan: Plan,
    versions: Mapping[str, Version],
    registry: Registry,
    loaded: LoadedConfig,
    time_use: str,
    console: Console,
) -> None:
    """Print the summary of a finished library, read from the registry.

    Args:
        plan: The plan of the run.
        versions: The registered version of each task of the plan.
        registry: The registry.
        loaded: The config.
        time_use: A line on where the time went; empty if nothing was trained.
        console: Console to print to.
    """
    pictures = plots(plan, registry)
    evaluation = json.loads(pictures[CONFUSION].with_name(EVALUATION).read_text())
    tables = [_experts(plan, versions, evaluation)]
    if PARETO in pictures:
        tables += map(front_table, read_search_records(pictures[PARETO].with_name(TRIALS)))
    store = f"{mask_uri(plan.config.store.uri)}  (ttmoe ui)"
    outputs: dict[str, Path | str] = {"experts and router": store, **pictures, "logs and files": plan.folders.home}
    if PARETO in pictures and (page := pictures[PARETO].with_name(SEARCH_REPORT)).is_file():  # none in older searches
        outputs[SEARCH_PAGE] = page
    for table in tables:
        console.print(table)
    console.print(_routing(evaluation), soft_wrap=True, highlight=False, markup=False)
    if time_use:
        console.print(time_use, soft_wrap=True, highlight=False, markup=False)
    show_outputs(outputs, console)
    right = {task: test.get("right_rows", ()) for task, test in evaluation["tasks"].items()}
    is_newest = registry.libraries()[0].name == plan.folders.library
    console.print(
        suggest_commands(plan, loaded, right, is_newest=is_newest), soft_wrap=True, highlight=False, markup=False
    )


def show_outputs(outputs: Mapping[str, Path | str], console: Console) -> None:
    """Print the paths of what a command has written, by title."""
    console.print("\nOutputs")
    for name, location in outputs.items():
        console.print(f"  {name:<22} {_relative(location)}", soft_wrap=True, highlight=False, markup=False)


def plots(plan: Plan, registry: Registry) -> dict[str, Path]:
    """Return the files of the plots of a finished library by title; their data are in the same folders."""
    router = registry.find_router(plan.folders.library, plan.router_hash)
    assert router is not None
    paths = {CONFUSION: registry.fetch(router) / CONFUSION_PLOT}
    search = plan.search_hash and registry.search_artifacts(plan.folders.library, plan.search_hash)
    return paths | ({PARETO: search / PARETO_PLOT} if search else {})


def _experts(plan: Plan, versions: Mapping[str, Version], evaluation: dict[str, Any]) -> Table:
    in_groups = "test.group_accuracy" in evaluation["metrics"]
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Library {plan.folders.library} on {plan.base.id}",
        title_justify="left",
        caption="expert, routed: test accuracy alone and behind the router (generated text: exact match)\n"
        + ("by group: right answers of any expert of the task's group or its twins\n" if in_groups else "")
        + "adapter, LoRA-16: trainable parameters on the same layers; head: those of the head, which both need",
        caption_justify="left",
    )
    table.add_column("task")
    compared = ["expert", "routed", *(["by group"] if in_groups else [])]
    for title in ("classes", "majority", *compared, "adapter", "LoRA-16", "head"):
        table.add_column(title, justify="right")
    every = list[list[float]]()
    for task, expert in plan.experts.items():
        test = evaluation["tasks"][task]
        right = [test["answered_right"], *([test["right_in_group"]] if in_groups else [])]
        alone = test.get("alone", versions[task].metrics.get("test.accuracy"))  # not in every evaluation of version 0.1
        accuracies = [alone, *(count / test["rows"] for count in right)]
        data, head = expert.job.data, versions[task].metrics.get(HEAD_PARAMETERS)
        every += [accuracies] if data.labelled else []
        table.add_row(
            task,
            str(len(expert.labels or data.label_names) or ("text" if data.kind in GENERATING_KINDS else "")),
            *(f"{value:.3f}" if data.labelled else "" for value in (data.majority, *accuracies)),
            f"{expert.job.parameters:,}",
            f"{expert.lora_parameters:,}",
            "" if head is None else f"{head:,.0f}",  # experts of version 0.1 do not say it
        )
    table.add_section()
    table.add_row("mean", "", "", *(f"{fmean(column):.3f}" for column in zip(*every, strict=True)), "", "", "")
    return table


def _routing(evaluation: dict[str, Any]) -> str:
    rows = sum(test["rows"] for test in evaluation["tasks"].values())
    metrics = evaluation["metrics"]
    lines = [
        f"Routing accuracy {evaluation['routing_accuracy']:.3f} on {rows:,} mixed test rows, without task names"
        f" ({metrics['stripped.routing_accuracy']:.3f} without case, punctuation and fields)."
    ]
    if "test.known_accuracy" in metrics:  # evaluations of version 0.1 lack it
        lines.append(
            f"The table answers every row. `ttmoe predict` answers `unknown` to {metrics['test.unknown']:.1%} of them; "
            f"with these as errors, the routed mean is {metrics['test.known_accuracy']:.3f}."
        )
    lines += [
        f"{format_names(group, len(group))} look like one task in several data sets: the router confuses them, and "
        "labels have common names."
        for group in evaluation.get("twins", ())
    ]
    if evaluation.get("twins"):
        groups = json.dumps(evaluation["groups"], separators=(",", ":"))
        lines.append(f"To let their experts answer together: ttmoe run ... --set 'router.groups={groups}'")
    return "\n".join(lines)


def _relative(location: Path | str) -> str:
    """Return a path relative to the working directory if it is inside it."""
    path, here = Path(location), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(location)
