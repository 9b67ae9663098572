"""A search in ``ttmoe status``: its counts, the trials that run and the best ones; a thousand trials fit one screen."""

from __future__ import annotations

from datetime import datetime

from rich.text import Text

from orchestrator.progress.driver_status import format_driver, format_period
from orchestrator.progress.item_table import MAX_ROWS, append_table
from orchestrator.progress.search_status import SearchStatus, TrialStatus
from orchestrator.progress.stage_progress import ItemProgress, first_line

_STATES = {
    "finished": "finished", "stopped": "stopped early", "running": "running", "waiting": "waiting for the next rung",
    "failed": "failed", "interrupted": "interrupted",
}  # fmt: skip
_MAX_FAILURES = 5
_WIDTH = 110  # characters of the table of trials


def append_search(text: Text, library: str, search: SearchStatus, now: datetime) -> None:
    """Append the status of a search to a text.

    Args:
        text: The text.
        library: Name of the library.
        search: The search.
        now: Time up to which ages are counted.
    """
    text.append("\n\n" if text else "")
    text.append(f"{library}: {search.run}, {search.status}\n", style="bold")
    text.append(f"  {format_period(search.began, search.ended, now)}\n")
    if search.status == "RUNNING":
        text.append(f"  {format_driver(search.driver, now)}\n", style="" if search.driver else "yellow")
    text.append(f"  search {search.run_id}\n", style="dim")
    text.append(f"\n{_format_counts(search)}\n")
    running = [trial for trial in search.trials if trial.state == "running"]
    append_table(text, "trial", [(_name(trial), _to_item(trial, search)) for trial in running[:MAX_ROWS]], _WIDTH)
    if len(running) > MAX_ROWS:
        text.append(f"… and {len(running) - MAX_ROWS} more running\n", style="dim")
    _append_best(text, search)
    _append_failed(text, [trial for trial in search.trials if trial.state == "failed"])


def _format_counts(search: SearchStatus) -> str:
    counts = ", ".join(f"{search.counts[state]} {name}" for state, name in _STATES.items() if state in search.counts)
    count, tasks = len(search.trials), len(search.tasks)
    on = f" of {tasks} tasks" if tasks > 1 else ""
    return f"{count} trial{'s' if count != 1 else ''}{on}: {counts}" if count else f"no trials{on}"


def _append_best(text: Text, search: SearchStatus) -> None:
    best = list(search.best.items())
    if not best:
        return
    text.append("\nthe most accurate so far\n" if search.status == "RUNNING" else "\nthe most accurate\n")
    for task, trial in sorted(best)[:MAX_ROWS]:
        state = "" if trial.state == "finished" else f", at step {trial.step}"
        text.append(
            f"  {task}: {trial.accuracy:.3f} with {trial.parameters:,} parameters{state}"
            f" (trial {trial.number}: {_point(trial)})\n"
        )
    if len(best) > MAX_ROWS:
        text.append(f"  … and of {len(best) - MAX_ROWS} more tasks (`ttmoe status --json` lists all)\n", style="dim")


def _append_failed(text: Text, failed: list[TrialStatus]) -> None:
    if not failed:
        return
    text.append("\nfailed\n", style="bold red")
    for trial in failed[-_MAX_FAILURES:]:
        text.append(f"  {_name(trial)}: {first_line(trial.error) or 'no error message is recorded'}\n")
    if len(failed) > _MAX_FAILURES:
        text.append(f"  … and {len(failed) - _MAX_FAILURES} more (`ttmoe status --json` lists all)\n", style="dim")


def _to_item(trial: TrialStatus, search: SearchStatus) -> ItemProgress:
    values = {"train.loss": trial.loss, "validation.accuracy": trial.accuracy}
    metrics = {name: value for name, value in values.items() if value is not None}
    return ItemProgress(trial.state, trial.step, search.steps, metrics, note=_point(trial))


def _name(trial: TrialStatus) -> str:
    return f"{trial.task} {trial.number}"


def _point(trial: TrialStatus) -> str:
    seed = [f"seed {trial.seed}"] if trial.seed else []
    return "; ".join([*(f"{name} {value}" for name, value in trial.point.items()), *seed])
