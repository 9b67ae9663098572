"""``ttmoe experts import``: an expert that was made elsewhere becomes a version of a library."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from orchestrator.config.schema import TaskName
from orchestrator.experts.base_folder import library_base
from orchestrator.experts.probing import ProbeBank
from orchestrator.experts.router_state import read_router_state
from orchestrator.experts.version_selection import version_label
from orchestrator.plan.identity import spec_hash
from orchestrator.registry import Registry, Version
from orchestrator.registry.driver_lock import driver_lock
from orchestrator.registry.library import open_library
from ttmoe.adapter import count_lora
from ttmoe.errors import InputError
from ttmoe.expert_files import EXPERT_MANIFEST, EXPERT_WEIGHTS, Manifest, load_expert, read_manifest, save_expert
from ttmoe.interchange import import_lora
from ttmoe.interchange.peft_files import CONFIG, HEAD
from workers.recipes import RECIPES

KINDS = {"classify": "text"}  # what a notebook's TextBank calls it


@dataclass(frozen=True)
class ExpertDescription:
    """What an expert reads and answers."""

    task: str
    kind: str
    labels: tuple[str, ...]


def import_expert(
    root: Path,
    library: str | None,
    folder: Path,
    task: str,
    labels: str | None,
    kind: str | None,
    console: Console,
) -> None:
    """Register the expert in ``folder`` (a ttmoe expert, or a PEFT LoRA adapter) as the task's candidate.

    The same folder gives the same version. Raises InputError for anything that is not an expert of the library's
    base: nothing is registered that was not saved, loaded again and found to answer alike.
    """
    _check_task(task)
    registry, found = open_library(root, library)
    bench = ProbeBank.open(library_base(registry, found))
    manifest = read_manifest(folder) if (folder / EXPERT_MANIFEST).is_file() else None
    meaning = _meaning(task, labels, kind, manifest, folder)
    _load(bench, folder, meaning)
    with tempfile.TemporaryDirectory() as scratch, driver_lock(root.resolve() / found):
        saved = _save(bench, meaning, manifest, Path(scratch))
        version = _register(registry, found, bench, saved, Path(scratch), folder)
    headless = bool(meaning.labels) and not _has_head(folder)
    _report(registry, version, folder, headless=headless, console=console)


def _check_task(task: str) -> None:
    try:
        TypeAdapter(TaskName).validate_python(task)
    except ValidationError as error:
        fix = "use lower-case letters, digits, _ and -; `router` and `search` are the library's own"
        raise InputError(f"{task!r} cannot name a task", where="--task", fix=fix) from error


def _meaning(
    task: str, labels: str | None, kind: str | None, manifest: Manifest | None, folder: Path
) -> ExpertDescription:
    """What was said on the command line, and for the rest what the folder says of itself."""
    names = tuple(name.strip() for name in labels.split(",")) if labels is not None else None
    if names is not None and (len(set(names)) < len(names) or len(names) < 2 or not all(names)):
        raise InputError(
            f"{labels!r} is no list of labels", where="--labels", fix="give two or more, as in --labels a,b"
        )
    if kind not in (None, "text", "pair", "generate"):
        raise InputError(f"there is no kind {kind!r}", where="--kind", fix="text, pair or generate")
    if names is not None and kind == "generate":
        raise InputError("an expert that writes text has no labels", where="--labels", fix="leave it out")
    if manifest is None and names is None and kind != "generate":
        fix = "name the labels in the order of the head's outputs: --labels a,b"
        raise InputError("the folder does not say what its labels are", where=str(folder), fix=fix)
    own = KINDS.get(manifest.kind, manifest.kind) if manifest else kind or "text"
    if kind == "generate" != own:
        raise InputError("it has labels, and writes no text", where=str(folder), fix="leave --kind out")
    if own in ("choice", "generate") and (labels or kind not in (None, own)):
        does = "chooses among options" if own == "choice" else "writes text"
        raise InputError(f"it {does}, and has no labels", where=str(folder), fix="leave --labels and --kind out")
    return ExpertDescription(task, kind or own, names if names is not None else manifest.labels if manifest else ())


def _load(bench: ProbeBank, folder: Path, meaning: ExpertDescription) -> None:
    """Put the expert into the bank. Raises InputError unless its head has one output for each label."""
    classes = len(meaning.labels) or int(meaning.kind != "generate")
    if (folder / EXPERT_WEIGHTS).is_file():
        load_expert(bench.bank, folder, bench.base.digest, name=meaning.task)
    elif (folder / CONFIG).is_file():
        unknown = None if (folder / HEAD).is_file() else classes
        import_lora(bench.bank, folder, meaning.task, classes=unknown, base_digest=bench.base.digest)
    else:
        fix = f"give a folder with {EXPERT_MANIFEST} and {EXPERT_WEIGHTS}, or with PEFT's {CONFIG}"
        raise InputError("the folder holds no expert", where=str(folder), fix=fix)
    outputs = bench.bank.expert(meaning.task).head.out_features
    if outputs != classes:
        fix = "name as many labels, in the order of the head's outputs"
        raise InputError(f"the head has {outputs} outputs, for {classes} labels", where=str(folder), fix=fix)


def _save(bench: ProbeBank, meaning: ExpertDescription, manifest: Manifest | None, folder: Path) -> Manifest:
    """Write the expert's files and hold what they load to against it: the same scores to the last bit, and finite."""
    metrics = manifest.metrics if manifest else {}
    expert = bench.bank.expert(meaning.task)

    def save(hash_: str) -> Manifest:
        return save_expert(
            expert,
            folder,
            **asdict(meaning),
            base=bench.base.identity(),
            spec_hash=hash_,
            metrics=metrics,
            answer_tokens=manifest.answer_tokens if manifest else 0,
        )

    # The digest of the weights is a part of the identity, and known when they are written.
    made = {
        "base": bench.base.identity(),
        "weights": save("").weights_digest,
        "kind": "imported",
        "recipe": RECIPES["import"],
    }
    saved = save(spec_hash(made | {"reads": meaning.kind, "labels": meaning.labels}))
    copy = "reloaded copy"
    load_expert(bench.bank, folder, bench.base.digest, name=copy)
    bench.kinds |= {meaning.task: meaning.kind, copy: meaning.kind}
    pairs = zip(bench.scores(meaning.task), bench.scores(copy), strict=True)
    if not all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in pairs):
        raise InputError("its answers are not finite, or change when it is saved", where=meaning.task,
                         fix="train it again")  # fmt: skip
    return saved


def _register(
    registry: Registry, library: str, bench: ProbeBank, saved: Manifest, files: Path, source: Path
) -> Version:
    params = {"source": str(source.resolve()), "adapter.method": saved.adapter.method, "base": bench.base.id,
              "adapter.rank": saved.adapter.rank, "parameters": saved.parameters}  # fmt: skip
    run = registry.expert_run(library, None, saved.task, saved.spec_hash, params)
    with registry.end_run_on_exit(run):
        registry.tag_run(run, {"origin": "imported"})
        # All at one moment, so that an import that is repeated adds nothing.
        registry.log_metrics(run, [(key, value, 0, 0) for key, value in saved.metrics.items()])
        return registry.register_expert(
            library,
            saved.task,
            saved.spec_hash,
            files,
            run,
            _tags(bench, saved),
            metrics=saved.metrics,
            description=f"{saved.adapter.method} adapter for {saved.task}, imported",
        )


def _tags(bench: ProbeBank, saved: Manifest) -> dict[str, object]:
    """As a trained expert's, as far as they apply."""
    groups, base = bench.bank.expert(saved.task).adapter.groups, bench.base
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
        "lora16_parameters": count_lora(groups),
        "weights_digest": saved.weights_digest,
    } | ({} if accuracy is None else {"metric": f"test.accuracy={accuracy:.4f}"})


def _has_head(folder: Path) -> bool:
    return (folder / EXPERT_WEIGHTS).is_file() or (folder / HEAD).is_file()


def _report(registry: Registry, version: Version, folder: Path, *, headless: bool, console: Console) -> None:
    said = [f"{version_label(version)} in library {version.library} is {folder}"]
    if headless:
        said.append("it came without a head, so it prefers no label yet: it is a start for training, not an answer")
    routing = read_router_state(registry, version.library, registry.experts(version.library))
    if routing is None or not routing.names(version):
        said.append(
            f"no router knows it yet; `ttmoe experts promote {version.task}@v{version.version}` makes it champion"
        )
    console.print("\n".join(said), highlight=False, markup=False, soft_wrap=True)
