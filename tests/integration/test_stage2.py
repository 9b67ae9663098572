"""Stage 2 with jobs that run out of memory, that die, and that find a damaged file: tried again, and with less.

Units run in this process; what is done after a failure is the pool's own decision.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import open_registry, versions
from killed_driver import InlinePool, units_inline
from rich.console import Console
from test_driver_killed import CONFIG

from orchestrator.config.loading import load_config
from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.plan.planning import make_plan
from orchestrator.plan.router_forecast import forecast_router
from orchestrator.pool.unit_queue import finish_job
from orchestrator.pool.unit_runner import run_unit
from ttmoe.base import empty_body
from ttmoe.errors import WorkFailedError
from workers.failure import Failure

pytestmark = pytest.mark.integration
MEMORY = Failure("memory", "OutOfMemoryError", "CUDA out of memory")
DIED = Failure("died", "ActorDiedError", "killed")


@dataclass(frozen=True)
class Call:
    """A call of a unit of stage 2: its function, its job, what it was called with, and what its worker reserves."""

    function: str
    key: str
    args: tuple
    options: dict[str, Any]
    resources: Any
    alone: bool


def scripted_pool(calls: list[Call], before: Callable[[Call, int], Failure | None]) -> type:
    """A pool that asks ``before`` of each call of stage 2, with the number of its attempt, whether it fails."""

    class ScriptedPool(InlinePool):
        def run(
            self, units: Any, reduce_memory: Any = None, resources: Any = None, requests: Any = None
        ) -> Iterator[Any]:
            queue, failures = list(units), defaultdict(list)
            if resources is None:  # stage 1
                yield from super().run(units, reduce_memory)
                return
            while queue:
                unit = queue.pop(0)
                ((key, (args, options)),) = unit.jobs.items()
                call = Call(unit.run.args[0].__name__, key, args, options, resources, unit.all_cores)
                calls.append(call)
                failure = before(call, len(failures[key]) + 1)
                outcome = failure or run_unit(unit, lambda progress: None)[key]
                event, retry = finish_job(unit, key, unit.jobs[key], outcome, failures[key], FailureSettings(),
                                          reduce_memory)  # fmt: skip
                queue[:0] = [retry.unit] if retry else []
                yield event

    return ScriptedPool


@pytest.fixture(scope="module")
def library(base_folder: Path, fresh_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library of which the router alone is missing."""
    folder = tiny.write_two_tasks(tmp_path_factory.mktemp("stage2") / "library", base_folder, fresh_store, CONFIG)
    error = run(folder, [], lambda call, attempt: Failure("code", "Stopped", "before the features"))
    assert "before the features" in str(error)
    return folder


@pytest.fixture
def folder(library: Path) -> Path:
    """The library without features of an earlier test, whose router another test does not want."""
    shutil.rmtree(library / "runs" / "cache" / "features", ignore_errors=True)
    return library


def run(
    folder: Path, calls: list[Call], before: Callable[[Call, int], Failure | None], *settings: str
) -> Exception | None:
    """Run the library with these settings; return the error with which it ends, if any."""
    import orchestrator.run.driver

    with pytest.MonkeyPatch.context() as patch, units_inline(scripted_pool(calls, before)):
        patch.chdir(folder)
        try:
            loaded = load_config("tiny.yaml", list(settings))
            orchestrator.run.driver.run_library(loaded, Console(quiet=True, width=200))
        except WorkFailedError as error:
            return error
    return None


def called(calls: list[Call], function: str, key: str) -> list[Call]:
    return [call for call in calls if (call.function, call.key) == (function, key)]


def test_d18_out_of_memory_again_ends_the_run_and_says_so(folder):
    calls: list[Call] = []
    error = run(folder, calls, lambda call, attempt: MEMORY if call.function == "run_router" else None)
    assert "router: OutOfMemoryError: CUDA out of memory" in str(error)
    assert len(called(calls, "run_router", "router")) == 2
    assert "tiny.router" not in versions(folder / "runs")


def test_d18_d19_jobs_reserve_what_the_plan_says_and_are_tried_again_with_half(folder, monkeypatch):
    first = {("compute_features", "colours"): [MEMORY], ("run_router", "router"): [MEMORY],
             ("answer_test_split", "animals"): [DIED, DIED], ("compare_depths", "depths"): [MEMORY]}  # fmt: skip
    calls: list[Call] = []

    def before(call: Call, attempt: int) -> Failure | None:
        return dict(enumerate(first.get((call.function, call.key), []), 1)).get(attempt)

    assert run(folder, calls, before) is None
    assert versions(folder / "runs")["tiny.router"] == 1
    rows = {key: [call.options["batch_rows"] for call in called(calls, *key)]
            for key in first if key[0] not in ("run_router", "compare_depths")}  # fmt: skip
    assert rows == {("compute_features", "colours"): [64, 32], ("answer_test_split", "animals"): [64, 64, 32]}
    assert [call.options["batch_rows"] for call in called(calls, "compute_features", "animals")] == [64]
    for key in (("run_router", "router"), ("compare_depths", "depths")):
        whole, half = (call.args[0].chunk_rows for call in called(calls, *key))
        assert half == whole // 2

    monkeypatch.chdir(folder)
    plan = make_plan(load_config("tiny.yaml", []).config)
    forecast = forecast_router(plan, empty_body(plan.base))
    reserved = {call.function: call.resources for call in calls}
    assert reserved == {"compute_features": forecast.features, "run_router": forecast.training,
                        "answer_test_split": forecast.testing, "compare_depths": forecast.comparing}  # fmt: skip
    router = called(calls, "run_router", "router")[0]
    assert router.alone  # with all cores of its node
    assert forecast.training.cpus == router.options["threads"] == plan.nodes[0].cpus


def test_features_that_are_damaged_before_a_router_reads_them_are_made_again(folder, capsys):
    """A flipped byte is found only by who reads the file, one at a time; only the damaged files are computed again."""
    files = {  # in the order in which they are read
        "run_router": ["animals-*/validation", "colours-*/train", "colours-*/stripped"],
        "compare_depths": ["animals-*/plain"],
    }
    calls: list[Call] = []

    def damage(call: Call, attempt: int) -> None:
        if len(called(calls, call.function, call.key)) == 1:
            for name in files.get(call.function, ()):
                (path,) = (folder / "runs").glob(f"cache/features/{name}-*.safetensors")
                content = bytearray(path.read_bytes())
                content[-100] ^= 1
                path.write_bytes(content)

    assert run(folder, calls, damage, "router.lr=0.01") is None
    order = [call.key for call in calls if call.function in ("compute_features", *files)]
    assert sorted(order[:2]) == ["animals", "colours"]
    first, second = ([unit, *(key for name in files[function] for key in (name.partition("-")[0], unit))]
                     for function, unit in (("run_router", "router"), ("compare_depths", "depths")))  # fmt: skip
    assert order[2:] == [*first, *second]
    damaged = re.findall(r"CorruptFileError: .*/(.*?)-\d+\.safetensors is damaged", capsys.readouterr().err)
    assert damaged == [name.rpartition("/")[2] for names in files.values() for name in names]
    router = open_registry(folder / "runs").router("tiny")
    assert router.aliases == ("candidate", "champion")
    assert router.metrics["test.routing_accuracy"] > 0.9
