"""``ttmoe status``: print the status of a library as text or JSON; the text of a thousand experts fits one screen."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from orchestrator.plan.json_output import to_json
from orchestrator.plan.quantities import format_duration
from orchestrator.progress.driver_status import format_driver, format_period
from orchestrator.progress.item_table import MAX_ROWS, append_table
from orchestrator.progress.search_screen import append_search
from orchestrator.progress.stage_progress import ItemProgress, first_line
from orchestrator.progress.status import ExpertStatus, RunStatus

STATES = ("registered", "training", "waiting", "failed", "stopped")
WIDTH = 110  # characters of the table of experts


def show_status(status: RunStatus, console: Console, *, as_json: bool = False) -> None:
    """Print the status of a run and a search.

    Args:
        status: The status.
        console: Console to print to.
        as_json: Whether to print JSON.
    """
    if as_json:
        console.out(to_json(status.to_dict(), exact=("point",)), highlight=False)
    else:
        console.print(render_status(status, datetime.now(UTC)))


def render_status(status: RunStatus, now: datetime) -> Text:
    """Return a status as styled text; ages are counted up to ``now``."""
    text = Text()
    if status.run_id not in {search.run_id for search in status.searches}:
        _append_run(text, status, now)
    for search in status.searches:
        append_search(text, status.library, search, now)
    text.rstrip()
    return text


def _append_run(text: Text, status: RunStatus, now: datetime) -> None:
    text.append(f"{status.library}: {status.run}, {status.status}\n", style="bold")
    left = f", experts ready in about {format_duration(status.left)}" if status.left and not status.ended else ""
    text.append(f"  {format_period(status.began, status.ended, now)}{left}\n")
    if status.status == "RUNNING":
        text.append(f"  {format_driver(status.driver, now, 'ttmoe run')}\n", style="" if status.driver else "yellow")
    code = f"ttmoe {status.version}" + (f", commit {status.commit[:12]}" if status.commit else "")
    text.append(f"  {code}; run {status.run_id}\n", style="dim")
    text.append(f"\n{_format_work(status)}\n")
    _append_experts(text, status)
    _append_failures(text, [expert for expert in status.experts if expert.state == "failed"])
    if status.router:
        text.rstrip()
        text.append(f"\n\nrouter: {status.router}")
    text.rstrip()


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
