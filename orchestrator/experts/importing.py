"""``ttmoe experts import``: register an expert that was made elsewhere as a version of a library."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from orchestrator.config.schema import TaskName
from orchestrator.config.store_address import StoreAddress
from orchestrator.experts.base_folder import library_base
from orchestrator.experts.probing import ProbeBank
from orchestrator.experts.router_state import how_to_route_to, read_router_state
from orchestrator.experts.version_selection import version_label
from orchestrator.plan.identity import spec_hash
from orchestrator.plan.named_experts import KINDS
from orchestrator.registry import Registry, Version
from orchestrator.registry.library import open_library
from ttmoe.adapter import count_lora_parameters
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, EXPERT_WEIGHTS, Manifest, load_expert, read_manifest, save_expert
from ttmoe.generating_kinds import GENERATING_KINDS
from ttmoe.interchange import import_lora
from ttmoe.interchange.peft_files import HEAD_WEIGHTS, LORA_CONFIG
from workers.recipes import RECIPES


@dataclass(frozen=True)
class ExpertDescription:
    """The task, kind and labels of an expert.

    Attributes:
        task: Name of the task.
        kind: ``text``, ``pair``, ``choice``, ``generate`` or ``chat``.
        labels: Labels in the order of the head's outputs; empty for ``choice``, ``generate`` and ``chat``.
    """

    task: str
    kind: str
    labels: tuple[str, ...]


def import_expert(
    store: StoreAddress,
    library: str | None,
    folder: Path,
    task: str,
    labels: str | None,
    kind: str | None,
    console: Console,
) -> None:
    """Register the expert in a folder as the candidate of a task.

    The expert is first saved, loaded again and checked to give the same scores. Importing the same folder again gives
    the same version.

    Args:
        store: The store to open.
        library: Name of the library; None selects the one that ran last.
        folder: Folder of a ttmoe expert or a PEFT LoRA adapter.
        task: Task of the expert.
        labels: Labels separated by commas, in the order of the head's outputs. None takes those of the manifest.
        kind: ``text``, ``pair``, ``generate`` or ``chat``. None takes that of the manifest, or ``text``.
        console: Console to print to.

    Raises:
        InputError: If the folder contains no expert of the library's base, or an argument contradicts it.
    """
    _check_task(task)
    registry, library = open_library(store, library)
    probes = ProbeBank.open(library_base(registry, library))
    manifest = read_manifest(folder) if (folder / EXPERT_MANIFEST).is_file() else None
    description = _describe(task, labels, kind, manifest, folder)
    _load(probes, folder, description)
    holding = registry.hold_lease(library, "ttmoe experts import", partial(console.print, soft_wrap=True))
    with tempfile.TemporaryDirectory() as files, holding as held:
        saved = _save(probes, description, manifest, Path(files))
        version = _register(held, library, probes, saved, Path(files), folder)
    headless = bool(description.labels) and not _has_head(folder)
    _report(registry, version, folder, headless=headless, console=console)


def _check_task(task: str) -> None:
    try:
        TypeAdapter(TaskName).validate_python(task)
    except ValidationError as error:
        fix = "use lower-case letters, digits, _ and -; `router` and `search` are reserved"
        raise InputError(f"{task!r} is not a valid task name", where="--task", fix=fix) from error


def _describe(
    task: str, labels: str | None, kind: str | None, manifest: Manifest | None, folder: Path
) -> ExpertDescription:
    """Combine the options with the manifest; an option overrides it. Raise InputError if they contradict."""
    names = tuple(name.strip() for name in labels.split(",")) if labels is not None else None
    if names is not None and (len(set(names)) < len(names) or len(names) < 2 or not all(names)):
        fix = "give two or more different labels: --labels a,b"
        raise InputError(f"{labels!r} is not a list of labels", where="--labels", fix=fix)
    if kind not in (None, "text", "pair", *GENERATING_KINDS):
        raise InputError(f"there is no kind {kind!r}", where="--kind", fix="use text, pair, generate or chat")
    if names is not None and kind in GENERATING_KINDS:
        raise InputError("an expert that generates text has no labels", where="--labels", fix="remove this option")
    if manifest is None and names is None and kind not in GENERATING_KINDS:
        fix = "give the labels in the order of the head's outputs: --labels a,b"
        raise InputError("the folder does not contain the names of the labels", where=str(folder), fix=fix)
    recorded = KINDS.get(manifest.kind, manifest.kind) if manifest else kind or "text"
    if kind in GENERATING_KINDS and recorded not in GENERATING_KINDS:
        raise InputError("the expert has labels and generates no text", where=str(folder), fix="remove --kind")
    if recorded in ("choice", *GENERATING_KINDS) and (labels or kind not in (None, recorded)):
        what = f"the expert {'chooses among options' if recorded == 'choice' else 'generates text'} and has no labels"
        raise InputError(what, where=str(folder), fix="remove --labels and --kind")
    recorded_labels = manifest.labels if manifest else ()
    return ExpertDescription(task, kind or recorded, recorded_labels if names is None else names)


def _load(probes: ProbeBank, folder: Path, description: ExpertDescription) -> None:
    """Load the expert into the bank; raise InputError if its head does not have one output for each label."""
    classes = len(description.labels) or int(description.kind not in GENERATING_KINDS)
    if (folder / EXPERT_WEIGHTS).is_file():
        load_expert(probes.bank, folder, probes.base.digest, name=description.task)
    elif (folder / LORA_CONFIG).is_file():
        head_classes = None if (folder / HEAD_WEIGHTS).is_file() else classes
        import_lora(probes.bank, folder, description.task, classes=head_classes, base_digest=probes.base.digest)
    else:
        fix = f"give a folder with {EXPERT_MANIFEST} and {EXPERT_WEIGHTS}, or with PEFT's {LORA_CONFIG}"
        raise InputError("the folder contains no expert", where=str(folder), fix=fix)
    outputs = probes.bank.expert(description.task).head.out_features
    if outputs != classes:
        fix = "give as many labels as outputs, in their order"
        raise InputError(f"the head has {outputs} outputs, for {classes} labels", where=str(folder), fix=fix)


def _save(probes: ProbeBank, description: ExpertDescription, manifest: Manifest | None, folder: Path) -> Manifest:
    """Write the expert's files; raise InputError unless they load to the same scores, bit for bit, and finite ones."""
    expert = probes.bank.expert(description.task)

    template = (manifest and manifest.chat_template) or probes.base.chat_template if description.kind == "chat" else ""

    def save(hash_: str) -> Manifest:
        return save_expert(
            expert,
            folder,
            **asdict(description),
            base=probes.base.record(),
            spec_hash=hash_,
            metrics=manifest.metrics if manifest else {},
            answer_tokens=manifest.answer_tokens if manifest else 0,
            chat_template=template,
        )

    # The spec contains the digest of the weights, which is known after they were written once.
    spec = {
        "base": probes.base.identity(),
        "weights": save("").weights_digest,
        "kind": "imported",
        "recipe": RECIPES["import"],
        "reads": description.kind,
        "labels": description.labels,
    }
    saved = save(spec_hash(spec))
    copy = "reloaded copy"
    load_expert(probes.bank, folder, probes.base.digest, name=copy)
    probes.kinds |= {description.task: description.kind, copy: description.kind}
    pairs = zip(probes.scores(description.task), probes.scores(copy), strict=True)
    if not all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in pairs):
        what = "its scores are not finite, or change when it is saved"
        raise InputError(what, where=description.task, fix="train it again")
    return saved


def _register(
    registry: Registry, library: str, probes: ProbeBank, saved: Manifest, files: Path, source: Path
) -> Version:
    params = {"source": str(source.resolve()), "adapter.method": saved.adapter.method, "base": probes.base.id,
              "adapter.rank": saved.adapter.rank, "parameters": saved.parameters}  # fmt: skip
    run = registry.expert_run(library, None, saved.task, saved.spec_hash, params)
    with registry.end_run_on_exit(run):
        registry.tag_run(run, {"origin": "imported"})
        # With constant step and time, so that a repeated import adds no further values.
        registry.log_metrics(run, [(key, value, 0, 0) for key, value in saved.metrics.items()])
        return registry.register_expert(
            library,
            saved.task,
            saved.spec_hash,
            files,
            run,
            _tags(probes, saved),
            metrics=saved.metrics,
            description=f"{saved.adapter.method} adapter for {saved.task}, imported",
        )


def _tags(probes: ProbeBank, saved: Manifest) -> dict[str, object]:
    """Return the tags of the version: those of a trained expert, except the ones about its training."""
    groups, base = probes.bank.expert(saved.task).adapter.groups, probes.base
    accuracy = saved.metrics.get("test.accuracy")
    return {
        "origin": "imported",
        "base": f"{base.source}:{base.id}",
        "base_revision": base.revision,
        "base_digest": base.digest,
        "method": saved.adapter.method,
        "rank": saved.adapter.rank,
        "shape": "; ".join(f"{group.role}={group.method}" for group in groups),
        "parameters": saved.parameters,
        "lora16_parameters": count_lora_parameters(groups),
        "weights_digest": saved.weights_digest,
    } | ({} if accuracy is None else {"metric": f"test.accuracy={accuracy:.4f}"})


def _has_head(folder: Path) -> bool:
    return (folder / EXPERT_WEIGHTS).is_file() or (folder / HEAD_WEIGHTS).is_file()


def _report(registry: Registry, version: Version, folder: Path, *, headless: bool, console: Console) -> None:
    lines = [f"registered {folder} as {version_label(version)} in library {version.library}"]
    if headless:
        lines.append("it came without a head: the new head prefers no label until it is trained")
    routing = read_router_state(registry, version.library, registry.experts(version.library))
    if routing is None or not routing.uses(version):
        lines.append(f"no router uses it yet; {how_to_route_to(version)}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
