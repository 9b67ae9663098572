"""What ``ttmoe status`` prints: a dozen lines for four experts, a screen for a thousand."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.progress.stage_progress import first_line, format_duration
from orchestrator.progress.status import ExpertStatus, RunStatus, read_status
from orchestrator.registry.library import open_library

MAX_STATUS_ROWS = 20  # so many rows of a kind are shown
STATUS_ORDER = ("registered", "training", "waiting", "failed", "stopped")
STATUS_STYLES = {"registered": "green", "failed": "bold red", "waiting": "dim", "stopped": "yellow"}


def show_status(root: Path, library: str | None, console: Console, *, as_json: bool = False) -> None:
    """Print the status of the library's newest run.

    Raises InputError where there is no library, or no run of it.
    """
    registry, name = open_library(root, library)
    status = read_status(registry, name, root.resolve() / name)
    if as_json:
        content = asdict(status) | {"counts": status.counts}
        text = json.dumps(content, indent=1, allow_nan=False, default=lambda value: value.isoformat())
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    else:
        console.print(render_status(status, datetime.now(UTC)))


def render_status(status: RunStatus, now: datetime) -> Text:
    """The whole answer, as text with styles; ``now`` is what ages are counted from."""
    text = Text()
    text.append(f"{status.library}: {status.run}, {status.status}\n", style="bold")
    text.append(f"  {_when(status, now)}\n")
    if status.status == "RUNNING":
        text.append(f"  {_driver(status)}\n", style="" if status.driver is not None else "yellow")
    code = f"ttmoe {status.version}" + (f", commit {status.commit[:12]}" if status.commit else "")
    text.append(f"  {code}; run {status.run_id}\n", style="dim")
    text.append(f"\n{_work(status)}\n")
    _experts(text, status)
    _failures(text, [expert for expert in status.experts if expert.state == "failed"])
    if status.router:
        text.append(f"\nrouter: {status.router}\n")
    text.rstrip()
    return text


def _when(status: RunStatus, now: datetime) -> str:
    began = f"{status.began.astimezone():%Y-%m-%d %H:%M:%S}"
    if status.ended:
        return f"began {began}, took {format_duration((status.ended - status.began).total_seconds())}"
    left = f", experts ready in about {format_duration(status.left)}" if status.left else ""
    return f"began {began}, {format_duration((now - status.began).total_seconds())} ago{left}"


def _driver(status: RunStatus) -> str:
    if status.driver is not None:
        return f"its driver runs on this machine (process {status.driver})"
    return (
        "RUNNING in the record, but no driver on this machine:\n"
        "  it runs elsewhere, or it died and the same `ttmoe run` continues it"
    )


def _work(status: RunStatus) -> str:
    counts = ", ".join(f"{status.counts[state]} {state}" for state in STATUS_ORDER if status.counts.get(state))
    count = len(status.experts)
    experts = f"{count} expert{'s' if count != 1 else ''} to make: {counts}" if count else "no experts to make"
    cached = f" ({status.cached} were there)" if status.cached else ""
    return experts + cached + (", and a search" if status.search else "")


def _experts(text: Text, status: RunStatus) -> None:
    """All of a few; of many those under way."""
    many = len(status.experts) > MAX_STATUS_ROWS
    chosen = [expert for expert in status.experts if expert.state == "training"] if many else status.experts
    width = min(36, max((len(expert.task) for expert in chosen), default=0))
    for expert in chosen[:MAX_STATUS_ROWS]:
        parts = [
            f"{expert.task[:width]:<{width}}",
            f"{expert.state:<10}",
            f"{f'step {expert.step}/{expert.steps}' if expert.step else '':<18}",
            f"{f'loss {expert.loss:.3f}' if expert.loss is not None else '':<11}",
            f"accuracy {expert.accuracy:.3f}" if expert.accuracy is not None else "",
        ]
        text.append("  " + "  ".join(parts).rstrip() + "\n", style=STATUS_STYLES.get(expert.state))
    if len(chosen) > MAX_STATUS_ROWS:
        text.append(f"  … and {len(chosen) - MAX_STATUS_ROWS} more under way\n", style="dim")


def _failures(text: Text, failed: list[ExpertStatus]) -> None:
    if not failed:
        return
    text.append("\nfailed\n", style="bold red")
    for expert in failed[:MAX_STATUS_ROWS]:
        text.append(f"  {expert.task}: {first_line(expert.error) or 'no reason is recorded'}\n")
    if len(failed) > MAX_STATUS_ROWS:
        text.append(
            f"  … and {len(failed) - MAX_STATUS_ROWS} more (`ttmoe status --json` lists them all)\n", style="dim"
        )
