"""Lives of the driver in forked children, each of which may be killed after any of its changes of state.

Units run inside the driver's process and not on Ray: a life then takes a second or two.
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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from commands import open_registry
from rich.console import Console

CHANGES = ("create_", "log_", "set_", "update_", "delete_")


class InlineCrew:
    """Runs units in this process, one after another."""

    def __init__(self, *settings: Any) -> None:
        self.started = 1

    def __enter__(self) -> InlineCrew:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, units: Any, smaller: Any = None) -> Iterator[Any]:
        from orchestrator.pool.work_units import JobEvent
        from workers.failure import Failure

        for unit in units:
            reports: list[Any] = []
            unit.log.parent.mkdir(parents=True, exist_ok=True)
            for key, value in unit.run(unit.jobs, reports.append).items():
                yield JobEvent(key, tuple((0.0, report) for report in reports if report.key in ("", key)))
                failed = isinstance(value, Failure)
                yield JobEvent(key, result=None if failed else value, failure=value if failed else None, done=True)


def life(config: Path, die_after: int | None = None) -> tuple[int, int]:
    """Run the library of ``config`` in a child; (exit status or -signal, changes of state it came to)."""
    counter = config.parent / "changes"
    counter.write_bytes(b"")
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _live(config, counter, die_after)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), counter.stat().st_size


def side_by_side(check: Callable[[int], None], numbers: Iterable[int]) -> list[str]:
    """``check`` for each number, in as many children as there are cores; what went wrong, as tracebacks."""
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


def _live(config: Path, counter: Path, die_after: int | None) -> int:
    import orchestrator.pool.worker_pool
    import orchestrator.run.driver
    from orchestrator.config.loading import load_config
    from ttmoe.errors import InputError

    os.chdir(config.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestrator.pool.worker_pool, "WorkerPool", InlineCrew)
        patch.setattr(orchestrator.run.driver, "ray_session", nullcontext)
        _count_changes(patch, counter, die_after)
        try:
            with open(os.devnull, "w") as nowhere:
                orchestrator.run.driver.run_library(load_config(config.name, []), Console(file=nowhere))
        except InputError as error:
            print(error)
            return error.code
    return 0


def _count_changes(patch: pytest.MonkeyPatch, counter: Path, die_after: int | None) -> None:
    """After each change of the registry or of a file's name: one more byte in ``counter``, and maybe the end."""
    from mlflow.tracking import MlflowClient

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            with counter.open("ab") as file:
                file.write(b".")
            if counter.stat().st_size == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in dir(MlflowClient):
        if name.startswith(CHANGES):
            patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    for place, name in ((os, "replace"), (os, "rename"), (pathlib.Path, "replace"), (pathlib.Path, "rename")):
        patch.setattr(place, name, counted(getattr(place, name)))


def registry_content(root: Path) -> dict[str, Any]:
    """All that must be the same whatever happened on the way: versions, tags, aliases, files, how runs ended."""
    registry = open_registry(root)
    versions = {}
    for version in registry.client.search_model_versions(max_results=1000):
        own = {key: value for key, value in version.tags.items() if not re.search("second|base_loads", key)}
        folder = registry.artifact_root / Path(version.source.removeprefix("file://")).relative_to(
            registry.artifact_root
        )
        versions[version.name, version.version] = own, _files(folder), version.status
    aliases = {model.name: dict(model.aliases) for model in registry.client.search_registered_models()}
    experiments = [found.experiment_id for found in registry.client.search_experiments()]
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


def _files(folder: Path) -> dict[str, str]:
    """Digests of the files that hold what was learned; logs and times differ from life to life."""
    kept = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kept)}
