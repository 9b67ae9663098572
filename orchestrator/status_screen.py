"""What ``ttmoe status`` prints: a dozen lines for four experts, a screen for a thousand."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from orchestrator.tally import duration, first_line

if TYPE_CHECKING:
    from orchestrator.status import ExpertStatus, Status

FEW = 20  # so many rows of a kind are shown
ORDER = ("registered", "training", "waiting", "failed", "stopped")
STYLES = {"registered": "green", "failed": "bold red", "waiting": "dim", "stopped": "yellow"}


def draw_status(status: Status, now: datetime) -> Text:
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


def _when(status: Status, now: datetime) -> str:
    began = f"{status.began.astimezone():%Y-%m-%d %H:%M:%S}"
    if status.ended:
        return f"began {began}, took {duration((status.ended - status.began).total_seconds())}"
    left = f", experts ready in about {duration(status.left)}" if status.left else ""
    return f"began {began}, {duration((now - status.began).total_seconds())} ago{left}"


def _driver(status: Status) -> str:
    if status.driver is not None:
        return f"its driver runs on this machine (process {status.driver})"
    return (
        "RUNNING in the record, but no driver on this machine:\n"
        "  it runs elsewhere, or it died and the same `ttmoe run` continues it"
    )


def _work(status: Status) -> str:
    counts = ", ".join(f"{status.counts[state]} {state}" for state in ORDER if status.counts.get(state))
    count = len(status.experts)
    experts = f"{count} expert{'s' if count != 1 else ''} to make: {counts}" if count else "no experts to make"
    cached = f" ({status.cached} were there)" if status.cached else ""
    return experts + cached + (", and a search" if status.search else "")


def _experts(text: Text, status: Status) -> None:
    """All of a few; of many those under way."""
    many = len(status.experts) > FEW
    chosen = [expert for expert in status.experts if expert.state == "training"] if many else status.experts
    width = min(36, max((len(expert.task) for expert in chosen), default=0))
    for expert in chosen[:FEW]:
        parts = [
            f"{expert.task[:width]:<{width}}",
            f"{expert.state:<10}",
            f"{f'step {expert.step}/{expert.steps}' if expert.step else '':<18}",
            f"{f'loss {expert.loss:.3f}' if expert.loss is not None else '':<11}",
            f"accuracy {expert.accuracy:.3f}" if expert.accuracy is not None else "",
        ]
        text.append("  " + "  ".join(parts).rstrip() + "\n", style=STYLES.get(expert.state))
    if len(chosen) > FEW:
        text.append(f"  … and {len(chosen) - FEW} more under way\n", style="dim")


def _failures(text: Text, failed: list[ExpertStatus]) -> None:
    if not failed:
        return
    text.append("\nfailed\n", style="bold red")
    for expert in failed[:FEW]:
        text.append(f"  {expert.task}: {first_line(expert.error) or 'no reason is recorded'}\n")
    if len(failed) > FEW:
        text.append(f"  … and {len(failed) - FEW} more (`ttmoe status --json` lists them all)\n", style="dim")
