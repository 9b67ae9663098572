"""Which temporary files beside answers belong to a command that was killed, by their names.

A command puts its ``run_name`` into the names of its temporary files: the machine, the process, when that started, and
a random part. So a later command on the same machine sees whether the process still runs. It cannot see the processes
of another machine or container, nor what ran before this machine was started: such a command counts as ended when none
of its files changed for ``SILENT_DAYS``, long after a worker should have written its next one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from orchestrator.registry.process_identity import ProcessIdentity, machine_id, presence, this_process

SILENT_DAYS = 7
_RUN = re.compile(r"([0-9a-f]{12})-(\d+)-([\d.]*)-[0-9a-f]{8}")


def run_name() -> str:
    """Return a new name for the temporary files of a command of this process."""
    own = this_process()
    return f"{_short(own.machine)}-{own.process}-{own.started}-{secrets.token_hex(4)}"


def files_of_ended_runs(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return those of the ``files`` that belong to commands that have ended, by the names of their runs."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if match := _RUN.search(path.name):
            found[match[0]].append(path)
    return {run: paths for run, paths in found.items() if _has_ended(run, paths)}


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files, except those that cannot be removed: the answers do not depend on it."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _has_ended(run: str, paths: list[Path]) -> bool:
    machine, process, started, _ = run.split("-")
    here = machine_id()
    if machine == _short(here):
        state = presence(ProcessIdentity("", here, int(process), started))
        if state != "unknown":
            return state == "gone"
    try:
        changed = max(path.lstat().st_mtime for path in paths)
    except OSError:  # its command has just renamed or removed one
        return False
    return time.time() - changed > SILENT_DAYS * 24 * 3600


def _short(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:12]
