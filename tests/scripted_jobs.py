"""Libraries of experts without training: each expert is created, written with 100 kB more and registered at once.

Everything except the training is real: plan, library state, forecast, worker pool on Ray, worker processes, recorder,
MLflow on SQLite. ``python tests/scripted_jobs.py FOLDER COUNT`` makes a library of COUNT experts and prints the times.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import tiny

EXTRA = 100_000  # bytes of an additional file in each expert's folder
STEPS = 4


def write_library(folder: Path, base_folder: Path, count: int, steps: int = STEPS) -> Path:
    """Write a config of ``count`` tasks with the same data and different seeds."""
    shutil.copytree(base_folder, folder / "base")
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north", 60)
    source = tiny.text_task(Path("colours.jsonl"))
    config = {
        "library": "many",
        "base": {"folder": "base", "max_length": 32, "dtype": "float32"},
        "adapter": {"rank": 2},
        "train": {"steps": steps},
        "tasks": {f"t{i:04}": source | {"train": {"seed": i}} for i in range(count)},
        "resources": {"cpus_per_expert": 1.0},
        "failures": {"retries": 1},
    }
    path = folder / "many.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def scripted(fates: Mapping[str, str], marks: Path) -> Callable[..., dict[str, Any]]:
    """Return a replacement of ``run_experts`` that does not train.

    It is defined inside a function so that Ray pickles it by value: workers cannot import this file.

    Args:
        fates: By task: ``fail``, ``die`` (the process), ``once`` (die at the first attempt), or ``raylet`` and
            ``gcs_server`` (that process of Ray dies at the first attempt). Other tasks succeed.
        marks: Folder with a file for each task whose process, or Ray's, died.
    """
    extra, steps = EXTRA, STEPS

    def run_experts(jobs: Sequence[Any], report: Callable[[Any], None]) -> dict[str, Any]:
        import os
        import time
        from pathlib import Path

        import psutil
        import torch

        from ttmoe.expert_files import save_expert
        from workers.base.resident import load_resident_base
        from workers.expert_result import ExpertResult, write_result
        from workers.failure import Failure
        from workers.progress import Progress

        outcomes: dict[str, Any] = {}
        for job in jobs:
            fate, mark = fates.get(job.task, ""), marks / job.task
            report(Progress("training", 1, steps, {"train.loss": 1.0}, key=job.task))
            if fate == "die" or (fate == "once" and not mark.exists()):
                mark.touch()
                os._exit(7)
            if fate in ("raylet", "gcs_server") and not mark.exists():
                mark.touch()
                driver = psutil.Process(os.getppid()).parent()  # the worker's parent is the raylet
                next(child for child in driver.children() if child.name() == fate).kill()
                time.sleep(120)
            if fate == "fail":
                outcomes[job.task] = Failure("code", "ValueError", f"{job.task} cannot be learned")
                continue
            with load_resident_base(job.base, job.device).in_use() as bank:
                draw = torch.Generator().manual_seed(job.train.seed)
                expert = bank.add(job.task, job.adapter, job.classes, draw)
                metrics = {"test.accuracy": 0.5, "validation.accuracy": 0.5, "seconds.job": 0.1}
                folder = Path(job.folder)
                manifest = save_expert(expert, folder, task=job.task, kind=job.data.kind, labels=job.data.label_names,
                                       base=job.base.record(), spec_hash=job.spec_hash, metrics=metrics)  # fmt: skip
            (folder / "extra.bin").write_bytes(os.urandom(extra))
            for step in range(2, steps + 1):
                report(Progress("training", step, steps, {"train.loss": 1 / step}, key=job.task))
            result = ExpertResult(job.task, job.spec_hash, metrics, job.parameters, manifest.weights_digest, job.folder)
            write_result(result)
            outcomes[job.task] = result
        return outcomes

    return run_experts


@contextmanager
def in_place_of_training(fates: Mapping[str, str], marks: Path) -> Iterator[None]:
    """Replace ``run_experts`` of stage 1 in this process within the context."""
    import orchestrator.run.stage1

    marks.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestrator.run.stage1, "run_experts", scripted(fates, marks))
        yield


class Usage(threading.Thread):
    """Sampler of the resident memory in bytes and CPU time in seconds of this process and its workers.

    It is a context manager.
    """

    def __init__(self) -> None:
        import psutil

        super().__init__(daemon=True)
        self.process, self.over = psutil.Process(), threading.Event()
        self.first = self.most = self.process.memory_info().rss
        self.cpu_before, self.cpu = sum(self.process.cpu_times()[:2]), 0.0
        self.workers: dict[int, list[tuple[int, float]]] = {}  # memory and CPU time by process, a pair for each sample

    def run(self) -> None:
        import psutil

        known: dict[int, Any] = {}
        while not self.over.wait(1.0):
            self.most = max(self.most, self.process.memory_info().rss)
            self.cpu = sum(self.process.cpu_times()[:2]) - self.cpu_before
            for process in self.process.children(recursive=True):
                with suppress(psutil.Error):
                    worker = known.setdefault(process.pid, process)
                    if worker.name().startswith("ray::Worker"):
                        sample = worker.memory_info().rss, sum(worker.cpu_times()[:2])
                        self.workers.setdefault(process.pid, []).append(sample)

    def __enter__(self) -> Usage:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()

    def figures(self) -> dict[str, Any]:
        """Growth of this process, CPU times, and each worker's memory after a quarter of the time and at the end."""
        return {
            "grown": self.most - self.first,
            "driver_cpu": self.cpu,
            "workers_cpu": sum(samples[-1][1] for samples in self.workers.values()),
            "workers_memory": [(samples[len(samples) // 4][0], samples[-1][0]) for samples in self.workers.values()],
        }


def make_library(path: Path, fates: Mapping[str, str] | None, out: Any = None) -> dict[str, Any]:
    """Plan and train the library of ``path`` as ``ttmoe run`` does before the router.

    Args:
        path: The config.
        fates: See ``scripted``; None trains.
        out: Where the live view is shown.

    Returns:
        Seconds by step, and counts.
    """
    from rich.console import Console

    from cluster.local import ray_session
    from orchestrator.config.loading import load_config
    from orchestrator.plan.forecast import check_feasible, make_forecast
    from orchestrator.plan.library_state import read_library_state
    from orchestrator.plan.planning import make_plan
    from orchestrator.pool.worker_pool import WorkerPool
    from orchestrator.progress.live_view import LiveView
    from orchestrator.recording.registrar import Stage1Result
    from orchestrator.registry import Registry
    from orchestrator.run.stage1 import train_experts

    took: dict[str, Any] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return call()
        finally:
            took[name] = time.monotonic() - began

    config = timed("load_config", lambda: load_config(str(path), []).config)
    plan = timed("make_plan", lambda: make_plan(config))
    registry = timed("open", lambda: Registry.open(config.store.uri, plan.folders.artifacts))
    timed("close_stale", lambda: registry.close_stale(plan.folders.library))
    state = timed("hold", lambda: read_library_state(plan, registry))
    nodes = plan.nodes
    timed("check_feasible", lambda: check_feasible(plan, nodes, state.todo or plan.experts))
    forecast = timed("forecast", lambda: make_forecast(plan, state, nodes))
    result = Stage1Result()
    if state.todo:
        run = registry.start_run(plan.folders.library, "run", {}, "", {"experts": state.todo})
        with (
            registry.end_run_on_exit(run),
            nullcontext() if fates is None else in_place_of_training(fates, path.parent / "marks"),
            ray_session(),
            LiveView(Console(file=out or sys.stderr)) as view,
            Usage() as usage,
            WorkerPool(forecast.job_resources, config.failures) as pool,
        ):
            count = forecast.experts_per_job
            timed("stage 1", lambda: train_experts(plan, state.todo, registry, run, pool, view, count, result))
        took |= usage.figures() | {"workers": pool.started}
        took["steps"] = sum(done.metrics.get("seconds.steps", 0.0) for done in result.results)
    return took | {"registered": len(result.versions), "failed": len(result.failed), "todo": len(state.todo)}


def main() -> None:
    """Make a library. With PROFILE in the environment, profile the driver and the recorder's thread.

    ``real`` as third argument trains each expert for two steps.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder, count, real = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["real"]
    fates: dict[str, str] | None = None if real else {}
    path = folder / "many.yaml"
    if not path.exists():
        write_library(folder, tiny.save_base(folder / "made"), count, 2 if real else STEPS)
    os.chdir(folder)
    if os.environ.get("PROFILE"):
        _profile(lambda: make_library(path, fates))
    else:
        print(json.dumps(make_library(path, fates)))


def _profile(call: Callable[[], Any]) -> None:
    from orchestrator.recording.recorder import Recorder

    run, thread = Recorder._run, cProfile.Profile()
    Recorder._run = lambda self: thread.runcall(run, self)  # type: ignore[method-assign]
    driver = cProfile.Profile()
    print(json.dumps(driver.runcall(call)))
    for name, profile in (("driver", driver), ("recorder", thread)):
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(70)
        print(f"--- {name}\n{text.getvalue()}")


if __name__ == "__main__":
    main()
