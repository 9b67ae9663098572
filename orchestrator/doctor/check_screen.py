"""Print the checks of ``ttmoe doctor`` as lines, each when it is made, or as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from orchestrator.doctor.checks import Check, Verdict
from orchestrator.plan.json_output import to_json

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_VERDICT_WIDTH, _NAME_WIDTH = 9, 16
_ORDER: tuple[Verdict, ...] = ("ok", "warning", "failed", "skipped")


def show_checks(checks: Iterable[Check], console: Console, *, as_json: bool = False) -> bool:
    """Print checks, and a last line with their number; return whether none failed.

    Args:
        checks: The checks; they may be made one after another while they are printed.
        console: Console to print to.
        as_json: Print one JSON object instead, at the end.
    """
    made = []
    with console.status("checking") if console.is_terminal and not as_json else nullcontext():
        for check in checks:
            made.append(check)
            if not as_json:
                console.print(check_lines(check, console.width), soft_wrap=True)
    counts = Counter(check.verdict for check in made)
    if as_json:
        content = to_json({"failed": counts["failed"], "checks": [asdict(check) for check in made]})
        console.print(content, highlight=False, markup=False, soft_wrap=True)
    else:
        numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict])
        head = f"{counts['failed']} of {len(made)} checks failed" if counts["failed"] else "Nothing failed"
        console.print(f"\n{head}: {numbers}", highlight=False, markup=False)
    return not counts["failed"]


def check_lines(check: Check, width: int) -> Text:
    """Return a check as lines of a terminal: the fix stands below what was found.

    Args:
        check: The check.
        width: Columns of the terminal.
    """
    indent = _VERDICT_WIDTH + _NAME_WIDTH
    column = max(20, width - indent)
    found = textwrap.wrap(check.found, column, break_on_hyphens=False) or [""]
    fix = textwrap.wrap(check.fix, column, break_on_hyphens=False, initial_indent="> ", subsequent_indent="  ")
    text = Text()
    text.append(check.verdict.ljust(_VERDICT_WIDTH), _STYLES[check.verdict])
    text.append(check.name.ljust(_NAME_WIDTH))
    text.append(("\n" + " " * indent).join([*found, *fix] if check.fix else found))
    return text
