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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny

EXTRA = 100_000  # bytes of an additional file in each expert's folder
STEPS = 4


def write_library(folder: Path, base_folder: Path, count: int) -> Path:
    """Write a config of ``count`` tasks with the same data and different seeds."""
    shutil.copytree(base_folder, folder / "base")
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north", 60)
    source = tiny.text_task(Path("colours.jsonl"))
    config = {
        "library": "many",
        "base": {"folder": "base", "max_length": 32, "dtype": "float32"},
        "adapter": {"rank": 2},
        "train": {"steps": STEPS},
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
        fates: ``fail``, ``die`` (the process), or ``once`` (die at the first attempt) by task. Other tasks succeed.
        marks: Folder with a file for each task whose process died.
    """
    extra, steps = EXTRA, STEPS

    def run_experts(jobs: Sequence[Any], report: Callable[[Any], None]) -> dict[str, Any]:
        import os
        from pathlib import Path

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
            if fate == "fail":
                outcomes[job.task] = Failure("code", "ValueError", f"{job.task} cannot be learned")
                continue
            with load_resident_base(job.base, job.device).in_use() as bank:
                draw = torch.Generator().manual_seed(job.train.seed)
                expert = bank.add(job.task, job.adapter, job.classes, draw)
                metrics = {"test.accuracy": 0.5, "validation.accuracy": 0.5, "seconds.job": 0.1}
                folder = Path(job.folder)
                manifest = save_expert(expert, folder, task=job.task, kind=job.data.kind, labels=job.data.label_names,
                                       base=job.base.identity(), spec_hash=job.spec_hash, metrics=metrics)  # fmt: skip
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


class Memory(threading.Thread):
    """Sampler of this process's resident memory in bytes; a context manager."""

    def __init__(self) -> None:
        import psutil

        super().__init__(daemon=True)
        self.process, self.over = psutil.Process(), threading.Event()
        self.first = self.most = self.process.memory_info().rss

    def run(self) -> None:
        while not self.over.wait(0.25):
            self.most = max(self.most, self.process.memory_info().rss)

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()

    @property
    def grown(self) -> int:
        return self.most - self.first


def make_library(path: Path, fates: Mapping[str, str], out: Any = None) -> dict[str, float]:
    """Plan and train the library of ``path`` as ``ttmoe run`` does before the router. Return seconds by step."""
    from rich.console import Console

    from cluster.local import ray_session
    from orchestrator.config.loading import load_config
    from orchestrator.plan.forecast import check_feasible, make_forecast
    from orchestrator.plan.library_state import read_library_state
    from orchestrator.plan.nodes import available_nodes
    from orchestrator.plan.planning import make_plan
    from orchestrator.pool.worker_pool import WorkerPool
    from orchestrator.progress.live_view import LiveView
    from orchestrator.recording.registrar import Stage1Result
    from orchestrator.registry import Registry
    from orchestrator.run.stage1 import train_experts

    took: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return call()
        finally:
            took[name] = time.monotonic() - began

    config = timed("load_config", lambda: load_config(str(path), []).config)
    plan = timed("make_plan", lambda: make_plan(config))
    registry = timed("open", lambda: Registry.open(config.tracking_uri, plan.folders.artifacts))
    timed("close_stale", lambda: registry.close_stale(plan.folders.library))
    state = timed("hold", lambda: read_library_state(plan, registry))
    nodes = available_nodes()
    timed("check_feasible", lambda: check_feasible(plan, nodes, state.todo or plan.experts))
    forecast = timed("forecast", lambda: make_forecast(plan, state, nodes))
    result = Stage1Result()
    if state.todo:
        run = registry.start_run(plan.folders.library, "run", {}, "", {"experts": state.todo})
        with (
            registry.end_run_on_exit(run),
            in_place_of_training(fates, path.parent / "marks"),
            ray_session(),
            LiveView(Console(file=out or sys.stderr)) as view,
            Memory() as memory,
            WorkerPool(forecast.job_resources, config.failures) as pool,
        ):
            count = forecast.experts_per_job
            timed("stage 1", lambda: train_experts(plan, state.todo, registry, run, pool, view, count, result))
        took["grown"] = memory.grown
    return took | {"registered": len(result.versions), "failed": len(result.failed), "todo": len(state.todo)}


def main() -> None:
    """Make a library. With PROFILE in the environment, profile the driver and the recorder's thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    path = folder / "many.yaml"
    if not path.exists():
        write_library(folder, tiny.save_base(folder / "made"), count)
    os.chdir(folder)
    if os.environ.get("PROFILE"):
        _profile(lambda: make_library(path, {}))
    else:
        print(json.dumps(make_library(path, {})))


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
