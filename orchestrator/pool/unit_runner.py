"""Run a work unit inside a worker process, with everything it prints in a log file."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.pool.work_units import WorkUnit
from workers.failure import to_failure
from workers.progress import ProgressCallback


def run_unit(unit: WorkUnit, report: ProgressCallback) -> dict[str, Any]:
    """Run a unit in this process.

    Args:
        unit: Unit to run; its output is appended to ``unit.log``.
        report: Receives the progress of its jobs.

    Returns:
        A result or a Failure for each job. An exception fails all jobs of the unit; its traceback is in the log.
    """
    try:
        unit.log.parent.mkdir(parents=True, exist_ok=True)
        with _redirect_output(unit.log):
            try:
                return unit.run(unit.jobs, report=report)
            except Exception as error:
                traceback.print_exc()
                return dict.fromkeys(unit.jobs, to_failure(error))
    except OSError as error:  # the log cannot be written
        return dict.fromkeys(unit.jobs, to_failure(error))


@contextmanager
def _redirect_output(path: Path) -> Iterator[None]:
    """Append stdout and stderr of the process, C libraries and child processes included, to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
