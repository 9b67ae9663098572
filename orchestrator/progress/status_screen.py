"""``ttmoe status``: print the status of a run as text or JSON; the text of a thousand experts fits one screen."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from orchestrator.plan.json_output import to_json
from orchestrator.plan.quantities import format_duration
from orchestrator.progress.item_table import MAX_ROWS, append_table
from orchestrator.progress.stage_progress import ItemProgress, first_line
from orchestrator.progress.status import DriverStatus, ExpertStatus, RunStatus

STATES = ("registered", "training", "waiting", "failed", "stopped")
WIDTH = 110  # characters of the table of experts


def show_status(status: RunStatus, console: Console, *, as_json: bool = False) -> None:
    """Print the status of a run.

    Args:
        status: The status.
        console: Console to print to.
        as_json: Whether to print JSON.
    """
    if as_json:
        console.out(to_json(status.to_dict()), highlight=False)
    else:
        console.print(render_status(status, datetime.now(UTC)))


def render_status(status: RunStatus, now: datetime) -> Text:
    """Return a status as styled text; ages are counted up to ``now``."""
    text = Text()
    text.append(f"{status.library}: {status.run}, {status.status}\n", style="bold")
    text.append(f"  {_format_times(status, now)}\n")
    if status.status == "RUNNING":
        text.append(f"  {_format_driver(status.driver, now)}\n", style="" if status.driver else "yellow")
    code = f"ttmoe {status.version}" + (f", commit {status.commit[:12]}" if status.commit else "")
    text.append(f"  {code}; run {status.run_id}\n", style="dim")
    text.append(f"\n{_format_work(status)}\n")
    _append_experts(text, status)
    _append_failures(text, [expert for expert in status.experts if expert.state == "failed"])
    if status.router:
        text.rstrip()
        text.append(f"\n\nrouter: {status.router}")
    text.rstrip()
    return text


def _format_times(status: RunStatus, now: datetime) -> str:
    start = f"started {status.began.astimezone():%Y-%m-%d %H:%M:%S}"
    if status.ended:
        return f"{start}, took {format_duration((status.ended - status.began).total_seconds())}"
    left = f", experts ready in about {format_duration(status.left)}" if status.left else ""
    return f"{start}, {format_duration((now - status.began).total_seconds())} ago{left}"


def _format_driver(driver: DriverStatus | None, now: datetime) -> str:
    if driver is None:
        return "MLflow reports RUNNING, but its driver has ended: the same `ttmoe run` continues it"
    name = "its driver" if driver.command == "ttmoe run" else f"`{driver.command}`"
    where = "this machine" if driver.is_here else driver.host
    text = f"{name} runs on {where} (process {driver.process}), since {driver.since.astimezone():%Y-%m-%d %H:%M:%S}"
    if driver.is_here:
        return text
    return f"{text},\n  last sign of life {format_duration((now - driver.seen).total_seconds())} ago"


def _format_work(status: RunStatus) -> str:
    counts = ", ".join(f"{status.counts[state]} {state}" for state in STATES if status.counts.get(state))
    count = len(status.experts)
    experts = f"{count} expert{'s' if count != 1 else ''} to train: {counts}" if count else "no experts to train"
    cached = f" ({status.cached} cached)" if status.cached else ""
    return experts + cached + (", and a search" if status.search else "")


def _append_experts(text: Text, status: RunStatus) -> None:
    """Append a table of all experts; of a long list, only those in training."""
    is_long = len(status.experts) > MAX_ROWS
    experts = [expert for expert in status.experts if not is_long or expert.state == "training"]
    append_table(text, "expert", [(expert.task, _to_item(expert)) for expert in experts[:MAX_ROWS]], WIDTH)
    if len(experts) > MAX_ROWS:
        text.append(f"… and {len(experts) - MAX_ROWS} more running\n", style="dim")


def _to_item(expert: ExpertStatus) -> ItemProgress:
    split = "test" if expert.state == "registered" else "validation"
    values = {"train.loss": expert.loss, f"{split}.accuracy": expert.accuracy}
    metrics = {name: value for name, value in values.items() if value is not None}
    return ItemProgress(expert.state, expert.step, expert.steps, metrics)


def _append_failures(text: Text, failed: list[ExpertStatus]) -> None:
    if not failed:
        return
    text.rstrip()
    text.append("\n\nfailed\n", style="bold red")
    for expert in failed[:MAX_ROWS]:
        text.append(f"  {expert.task}: {first_line(expert.error) or 'no error message is recorded'}\n")
    if len(failed) > MAX_ROWS:
        text.append(f"  … and {len(failed) - MAX_ROWS} more (`ttmoe status --json` lists all)\n", style="dim")
