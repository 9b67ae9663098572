"""``ttmoe experts compress``: cut a registered expert to a smaller rank and register the result as a candidate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from orchestrator.config.declared import refuse_declared
from orchestrator.config.loading import LoadedConfig
from orchestrator.experts.router_state import how_to_route_to
from orchestrator.experts.version_selection import choose_version, version_label
from orchestrator.plan.identity import hashed_settings, spec_hash
from orchestrator.plan.memory_fit import fit_memory
from orchestrator.plan.planning import make_plan
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from ttmoe.base import empty_body
from ttmoe.errors import InputError
from ttmoe.expert_files import Manifest, read_manifest
from ttmoe.generating_kinds import GENERATING_KINDS
from workers.expert_job import ExpertJob
from workers.progress import Progress
from workers.recipes import RECIPES
from workers.tuning.cutting_job import run_cutting
from workers.tuning.distillation import most_distillation_steps
from workers.tuning.members import CuttingJob, CuttingResult, Member

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def compress_expert(
    loaded: LoadedConfig,
    name: str,
    number: int | None,
    parameters: int | None,
    within: float | None,
    console: Console,
) -> None:
    """Cut an expert to every smaller rank, choose one on the validation split, and register it as the candidate.

    The validation and training rows of the task are those of the config. Repeating the command gives the same version.

    Args:
        loaded: The config of the library.
        name: The expert, as in ``choose_version``.
        number: Number of its version; None if ``name`` selects it.
        parameters: Choose the best expert with at most so many parameters.
        within: Choose the smallest expert whose validation accuracy is at most so much below the whole expert's.
        console: Console to print to.

    Raises:
        InputError: If there is no such expert, the config has other rows for its task, or no cut meets the bound.
    """
    if (parameters is None) == (within is None):
        raise InputError("the bound is missing or given twice", where="ttmoe experts compress",
                         fix="give --parameters N, or --accuracy-within 0.005")  # fmt: skip
    task, config = name.partition("@")[0], loaded.config
    if task not in config.tasks:
        raise InputError(f"the config has no task {task!r}", where=loaded.source_name,
                         fix=f"use the config of the library; its tasks: {', '.join(config.tasks)}")  # fmt: skip
    registry, library = open_library(config.store, config.library)
    version = choose_version(registry, library, name, number)
    registry.check_files(version)
    folder = registry.fetch(version)
    only = config.model_copy(update={"tasks": {task: config.tasks[task]}, "search": None})
    refuse_declared(only)
    plan = make_plan(only, registry=registry)
    planned = fit_memory(plan, empty_body(plan.base)).experts[task].job
    job = _job(planned, version, folder)
    with console.status(f"cutting {version_label(version)}") as status:
        result = run_cutting(job, lambda progress: status.update(_said(progress)))
    _print_members(result, console)
    chosen = _choose(result, parameters, within)
    holding = registry.hold_lease(library, "ttmoe experts compress", partial(console.print, soft_wrap=True))
    with holding as held:
        made = _register(held, library, version, result.parent, chosen)
    _report(made, version, chosen, console)


def _job(planned: ExpertJob, version: Version, folder: Path) -> CuttingJob:
    """Return the job that cuts a registered expert to every smaller rank and keeps all members."""
    manifest = read_manifest(folder)
    _check_labels(planned, version, manifest)
    recorded = version.tags.get("data_fingerprint", planned.data.fingerprint)
    if recorded != planned.data.fingerprint:
        raise InputError(f"{version_label(version)} was trained on other rows than the config has now",
                         where=f"tasks.{version.task}", fix="restore the data, or train the expert again")  # fmt: skip
    ranks = tuple(rank for rank in RANKS if rank < manifest.adapter.rank)
    if not ranks:
        raise InputError(f"{version_label(version)} has rank 1: there is no smaller one", where=version.task)
    distill = most_distillation_steps(planned.train.steps)
    hashes = {rank: spec_hash(_spec(planned, version, manifest, rank, distill)) for rank in ranks}
    expert = replace(planned, folder=str(Path(planned.folder).parent / f"cuts-{version.spec_hash[:12]}"))
    return CuttingJob(expert, ranks, distill_steps=distill, parent=str(folder), keep=hashes)


def _check_labels(planned: ExpertJob, version: Version, manifest: Manifest) -> None:
    """Raise InputError if the rows have no labels, or others than the expert, in the order of its outputs."""
    where = f"tasks.{version.task}"
    if not planned.data.labelled:
        fix = "give rows with labels: `source`, `columns` and `label`"
        raise InputError("its rows have no labels", where=f"{where}.routing_rows", fix=fix)
    if planned.data.kind not in ("choice", *GENERATING_KINDS) and planned.data.label_names != manifest.labels:
        what = f"{version_label(version)} has the labels {', '.join(manifest.labels)}, in this order"
        raise InputError(what, where=f"{where}.label", fix="give them in the same order: `label.names`")


def _spec(planned: ExpertJob, version: Version, manifest: Manifest, rank: int, distill: int) -> dict[str, object]:
    """Return the spec of a cut: the expert that it is made from, and the settings of cut and distillation."""
    return {
        "recipe": RECIPES["cut"],
        "kind": "compressed",
        "origin": version.spec_hash,
        "weights": manifest.weights_digest,
        "data": planned.data.fingerprint,
        "train": hashed_settings(planned.train),
        "rank": rank,
        "distill_steps": distill,
    }


def _said(progress: Progress) -> str:
    return f"{progress.state} {progress.step} of {progress.steps}" if progress.steps else progress.state


def _choose(result: CuttingResult, parameters: int | None, within: float | None) -> Member:
    """Return the member that the bound chooses; raise InputError if none meets it."""
    if parameters is not None:
        fitting = [member for member in result.members if member.parameters <= parameters]
        if not fitting:
            least = min(member.parameters for member in result.members)
            raise InputError(f"no cut has at most {parameters:,} parameters", where="--parameters",
                             fix=f"the smallest has {least:,}")  # fmt: skip
        return max(fitting, key=lambda member: (member.accuracy, -member.loss, -member.parameters))
    assert within is not None
    close = [member for member in result.members if member.accuracy >= result.parent.accuracy - within]
    if not close:
        best = max(member.accuracy for member in result.members)
        raise InputError(f"no cut is within {within:g} of the accuracy {result.parent.accuracy:.4f}",
                         where="--accuracy-within", fix=f"the best cut has {best:.4f}: raise the bound")  # fmt: skip
    return min(close, key=lambda member: (member.parameters, -member.accuracy))


def _register(registry: Registry, library: str, version: Version, parent: Member, chosen: Member) -> Version:
    folder = Path(chosen.folder)
    manifest = read_manifest(folder)
    shape = "; ".join(f"{role}={shape}" for role, shape in chosen.shapes.items())
    params = {"source": version_label(version), "adapter.method": manifest.adapter.method,
              "adapter.rank": chosen.rank, "parameters": chosen.parameters, "base": manifest.base["id"]}  # fmt: skip
    run = registry.expert_run(library, None, version.task, manifest.spec_hash, params)
    copied = ("base", "base_revision", "base_digest", "lora16_parameters", "data_fingerprint")
    tags = {key: version.tags[key] for key in copied if key in version.tags} | {
        "origin": "compressed",
        "origin_version": version.version,
        "origin_spec_hash": version.spec_hash,
        "compression": "truncate, distilled" if chosen.distilled else "truncate",
        "method": manifest.adapter.method,
        "rank": chosen.rank,
        "shape": shape,
        "parameters": chosen.parameters,
        "weights_digest": manifest.weights_digest,
        "metric": f"validation.accuracy={chosen.accuracy:.4f}",
    }
    metrics = {**manifest.metrics, "validation.accuracy_of_origin": parent.accuracy}
    with registry.end_run_on_exit(run):
        registry.tag_run(run, {"origin": "compressed"})
        # With constant step and time, so that a repeated command adds no further values.
        registry.log_metrics(run, [(key, value, 0, 0) for key, value in metrics.items()])
        description = f"{version_label(version)} cut to rank {chosen.rank}"
        return registry.register_expert(library, version.task, manifest.spec_hash, folder, run, tags, metrics=metrics,
                                        description=description)  # fmt: skip


def _print_members(result: CuttingResult, console: Console) -> None:
    for member in (result.parent, *result.members):
        kind = "whole" if member is result.parent else "distilled" if member.distilled else "cut"
        line = f"rank {member.rank:<4} {member.parameters:>12,} parameters  accuracy {member.accuracy:.4f}"
        console.print(f"{line}  loss {member.loss:.4f}  {kind}", highlight=False, soft_wrap=True)


def _report(made: Version, version: Version, chosen: Member, console: Console) -> None:
    console.print(
        f"registered {version_label(made)}: {version_label(version)} cut to rank {chosen.rank}\n"
        f"{how_to_route_to(made)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
