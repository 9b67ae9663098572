"""Runs of the driver in forked child processes that can be killed after any write to the registry.

Work units run in the driver's process instead of on Ray, so a run takes a second or two.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from commands import open_registry
from rich.console import Console

WRITES = ("create_", "log_", "set_", "update_", "delete_")


class InlinePool:
    """Replacement of the worker pool that runs units in this process, one after another."""

    def __init__(self, *settings: Any) -> None:
        self.started, self.busy_seconds, self.waiting_seconds = 1, 0.0, 0.0

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def gpu_seconds(self) -> float:
        return 0.0

    def run(
        self,
        units: Any,
        reduce_memory: Any = None,
        resources: Any = None,
        requests: Any = None,
        more_units: Any = None,
    ) -> Iterator[Any]:
        from orchestrator.pool.unit_runner import run_unit
        from orchestrator.pool.work_units import JobEvent
        from workers.failure import Failure

        for unit in with_more(units, more_units):
            reports: list[Any] = []
            if unit.all_cores:  # this process may be a fork, in which torch waits for the threads of its parent
                unit = unit.with_threads(1)
            # What it prints goes to the descriptors, which are those of its log meanwhile, as in a worker's process.
            with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
                outcomes = run_unit(unit, reports.append)
            for key, value in outcomes.items():
                yield JobEvent(key, tuple((0.0, report) for report in reports if report.key in ("", key)))
                failed = isinstance(value, Failure)
                yield JobEvent(key, result=None if failed else value, failure=value if failed else None, done=True)


def with_more(units: Iterable[Any], more_units: Callable[[int], Iterable[Any]] | None) -> Iterator[Any]:
    """Yield the units, and then those that ``more_units`` adds one at a time, until it adds none."""
    yield from units
    while more_units and (added := list(more_units(1))):
        yield from added


@contextmanager
def units_inline(pool: type = InlinePool) -> Iterator[None]:
    """Run the units of a driver in this process within the context, and start no Ray."""
    import torch

    import orchestrator.pool.worker_pool
    import orchestrator.run.stages
    import orchestrator.run.tune_driver

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # this process may be a fork, in which torch waits for the threads of its parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestrator.pool.worker_pool, "WorkerPool", pool)
        for module in (orchestrator.run.stages, orchestrator.run.tune_driver):
            patch.setattr(module, "ray_session", nullcontext)
        yield
    torch.set_num_threads(threads)


def run_driver(config: Path, die_after: int | None = None) -> tuple[int, int]:
    """Run the library of ``config`` in a child process.

    Args:
        config: The config file.
        die_after: Kill the process after this number of writes.

    Returns:
        The exit status or -signal, and the number of writes.
    """
    counter = config.parent / "writes"
    counter.write_bytes(b"")
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _run_library(config, counter, die_after)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), counter.stat().st_size


def check_in_parallel(check: Callable[[int], None], numbers: Iterable[int]) -> list[str]:
    """Call ``check`` for each number in one child process per core. Return the tracebacks of failed checks."""
    children, pids = os.cpu_count() or 1, []
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(children):
            pid = os.fork()
            if pid == 0:
                try:
                    for number in list(numbers)[i::children]:
                        check(number)
                except BaseException:
                    Path(scratch, str(i)).write_text(traceback.format_exc())
                finally:
                    os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        return [path.read_text() for path in Path(scratch).iterdir()]


def _run_library(config: Path, counter: Path, die_after: int | None) -> int:
    import orchestrator.run.driver
    from orchestrator.config.loading import load_config
    from ttmoe.errors import InputError

    os.chdir(config.parent)
    with pytest.MonkeyPatch.context() as patch, units_inline():
        _count_writes(patch, counter, die_after)
        try:
            with open(os.devnull, "w") as devnull:
                orchestrator.run.driver.run_library(load_config(config.name, []), Console(file=devnull))
        except InputError as error:
            print(error)
            return error.code
    return 0


def _count_writes(patch: pytest.MonkeyPatch, counter: Path, die_after: int | None) -> None:
    """Append a byte to ``counter`` after each registry write or file rename, and kill the process if it is time.

    Digests of files, which are only remembered once the files are some seconds old, do not count.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.tracking import MlflowClient

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if Path(str(args[-1])).parent.name == "digests":
                return result
            with counter.open("ab") as file:
                file.write(b".")
            if counter.stat().st_size == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for owner in (MlflowClient, LocalArtifactRepository):
        for name in dir(owner):
            if name.startswith(WRITES):
                patch.setattr(owner, name, counted(getattr(owner, name)))
    for owner, name in ((os, "replace"), (os, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "rename")):
        patch.setattr(owner, name, counted(getattr(owner, name)))


def registry_content(root: Path) -> dict[str, Any]:
    """Return everything that must not depend on interruptions: versions, tags, aliases, weights, statuses of runs."""
    registry = open_registry(root)
    versions = {}
    for version in registry.client.search_model_versions(max_results=1000):
        tags = {key: value for key, value in version.tags.items() if not re.search("second|base_loads", key)}
        if base_folder := tags.get("ttmoe.base_folder"):  # each test has a folder of its own
            tags["ttmoe.base_folder"] = str(Path(base_folder).relative_to(root.parent.resolve()))
        folder = registry.artifact_root / Path(version.source.removeprefix("file://")).relative_to(
            registry.artifact_root
        )
        versions[version.name, version.version] = tags, _digests(folder), version.status
    aliases = {model.name: dict(model.aliases) for model in registry.client.search_registered_models()}
    experiments = [experiment.experiment_id for experiment in registry.client.search_experiments()]
    runs = registry.client.search_runs(experiments, max_results=1000)
    work = sorted(
        (run.data.tags["ttmoe.task"], run.info.status) for run in runs if run.data.tags["ttmoe.kind"] == "expert"
    )
    return {
        "versions": versions,
        "aliases": aliases,
        "work": work,
        "running": [run.info.run_name for run in runs if run.info.status == "RUNNING"],
    }


def _digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 digests of the weight files. Logs and times differ from run to run."""
    weights = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(weights)}
