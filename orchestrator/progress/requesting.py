"""``ttmoe jobs skip`` and ``retry``: ask the driver of an active run, from any machine that reaches its store."""

from __future__ import annotations

import time
from typing import Literal

from rich.console import Console

from orchestrator.config.store_address import StoreAddress
from orchestrator.registry.library import open_library
from orchestrator.registry.run_requests import RunRequest, requests_in
from ttmoe.errors import InputError, WorkFailedError

_WAIT_SECONDS = 60.0  # longest wait for an answer
_POLL_SECONDS = 1.0


def request_for_task(
    address: StoreAddress, library: str | None, action: Literal["skip", "retry"], task: str, console: Console
) -> None:
    """Ask the active run of a library to leave an expert out or to try it again, and print its answer.

    Args:
        address: The store.
        library: Name of the library; None selects the one that ran last.
        action: ``skip`` or ``retry``.
        task: Name of the task.
        console: Prints the answer.

    Raises:
        InputError: If no run is active, or it does not train this task.
        WorkFailedError: If the driver gives no answer.
    """
    registry, name = open_library(address, library)
    run = registry.newest_run(name)
    if run is None or run.status != "RUNNING":
        fix = "start it with `ttmoe run`, which tries all missing experts"
        raise InputError("no run is active", where=f"library {name} in {address}", fix=fix)
    tasks = registry.planned_work(run.run_id).get("experts", [])
    if task not in tasks:
        fix = f"tasks that it trains: {', '.join(tasks) or 'none'}"
        raise InputError(f"the run does not train {task!r}", where=f"{run.name} of library {name}", fix=fix)
    request = RunRequest.new(action, task)
    registry.tag_run(run.run_id, request.as_tag())
    ends = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < ends:
        time.sleep(_POLL_SECONDS)
        found = requests_in(registry.run_record(run.run_id).tags)
        if answer := next((each.answer for each in found if each.token == request.token), ""):
            console.print(answer, highlight=False, markup=False, soft_wrap=True)
            return
    what = f"the run gave no answer in {_WAIT_SECONDS:g} s"
    raise WorkFailedError(what, where=run.name, fix="see `ttmoe status`: it may train no experts now, or be lost")
