"""What the store must hold after a drill: each expert once, those of before unchanged, and nothing left open."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console

from orchestrator.config.loading import LoadedConfig
from orchestrator.config.store_address import StoreAddress
from orchestrator.doctor.checks import Check, checked, faulty, passed
from orchestrator.doctor.tiny_library import tiny_texts
from orchestrator.plan.quantities import format_names
from orchestrator.registry import Registry

_LOST = "do not trust this store with a library: see its server, its disk, and what else writes there"


@dataclass(frozen=True)
class RegisteredExpert:
    """What must not change of an expert once it is registered."""

    version: int
    run_id: str
    created: datetime
    weights: str


def registered_experts(registry: Registry, library: str) -> dict[str, tuple[RegisteredExpert, ...]]:
    """Return all versions of each task's expert."""
    found: dict[str, tuple[RegisteredExpert, ...]] = {}
    for each in registry.experts(library, every=True):
        weights = each.tags.get("weights_digest", "")
        new = RegisteredExpert(each.version, each.run_id, each.created, weights)
        found[each.task] = (*found.get(each.task, ()), new)
    return found


def check_evidence(
    loaded: LoadedConfig, store: StoreAddress, before: Mapping[str, tuple[RegisteredExpert, ...]]
) -> Iterator[Check]:
    """Make the checks of the store after a drill.

    Args:
        loaded: The config of the library.
        store: Its store.
        before: The experts that were registered before the driver was killed.
    """
    library, opened = loaded.config.library, list[Registry]()

    @checked("store")
    def reopen() -> Check:
        opened.append(Registry.open(store.uri, store.artifacts, store.source))
        return passed("")

    if (check := reopen()).verdict == "failed":
        yield check
        return
    registry = opened[0]
    yield _check_once(loaded, registry)
    yield _check_kept(registry, library, before)
    yield _check_files(store, library)
    yield _check_closed(registry, library)
    yield _check_router(loaded, registry)
    yield _check_answers(loaded, store)


@checked("experts")
def _check_once(loaded: LoadedConfig, registry: Registry) -> Check:
    tasks, found = loaded.config.tasks, registered_experts(registry, loaded.config.library)
    wrong = [f"{task} has {len(found.get(task, ()))} versions" for task in tasks if len(found.get(task, ())) != 1]
    return faulty(format_names(wrong), _LOST) if wrong else passed(f"{len(tasks)} of {len(tasks)}, one version each")


@checked("kept")
def _check_kept(registry: Registry, library: str, before: Mapping[str, tuple[RegisteredExpert, ...]]) -> Check:
    after = registered_experts(registry, library)
    lost = [task for task, versions in before.items() if after.get(task) != versions]
    if lost:
        return faulty(f"registered before the driver was killed, and lost or trained again: {', '.join(lost)}", _LOST)
    return passed(f"registered before the driver was killed, and not trained again: {', '.join(before)}")


@checked("files")
def _check_files(store: StoreAddress, library: str) -> Check:
    from orchestrator.experts.verifying import verify_experts

    output = io.StringIO()
    try:
        verify_experts(store, library, [], True, Console(file=output, width=1000))
    except Exception as error:
        failures = [line for line in output.getvalue().splitlines() if not line.endswith(": ok")]
        return faulty("; ".join(failures) or str(error).splitlines()[0], _LOST)
    return passed("weights and answers of each expert are those that were registered")


@checked("runs")
def _check_closed(registry: Registry, library: str) -> Check:
    left = registry.open_runs(library)
    unfinished = sorted({task for task, _ in registry.unfinished_specs(library)})
    if left or unfinished:
        what = [f"RUNNING: {format_names(left)}"] if left else []
        what += [f"not finished: {', '.join(unfinished)}"] if unfinished else []
        return faulty("; ".join(what), _LOST)
    return passed("none is left RUNNING in MLflow")


@checked("router")
def _check_router(loaded: LoadedConfig, registry: Registry) -> Check:
    library = loaded.config.library
    if (router := registry.router(library)) is None:
        return faulty("there is none", _LOST)
    lock, experts = registry.router_lock(router), registry.experts(library)
    wrong = [each.task for each in experts if lock.get(each.task) != each.spec_hash]
    wrong += sorted(set(loaded.config.tasks) - lock.keys())
    if wrong:
        return faulty(f"its lock does not name the experts of {', '.join(wrong)}", _LOST)
    return passed(f"its lock names the {len(lock)} experts")


@checked("answers")
def _check_answers(loaded: LoadedConfig, store: StoreAddress) -> Check:
    from orchestrator.predict.request import PredictRequest
    from orchestrator.predict.routed_model import open_router

    messages = io.StringIO()
    model = open_router(PredictRequest(library=loaded.config.library, store=store), Console(file=messages)).load("cpu")
    rows = {task: tiny_texts(task)[:3] for task in loaded.config.tasks}
    answers = model.predict([text for texts in rows.values() for text, _ in texts])
    asked = [task for task, texts in rows.items() for _ in texts]
    right = sum(answer.task == task for answer, task in zip(answers, asked, strict=True))
    if not right:
        return faulty(f"none of {len(asked)} texts is answered by its expert", _LOST)
    return passed(f"{right} of {len(asked)} texts are answered by their experts")
