"""HTML files that need no server, no network and no other file, from the templates of this folder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.plan.quantities import format_duration
from orchestrator.progress.stage_progress import first_line
from ttmoe.atomic_write import write_atomically


def write_html(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write a filled template to a file, and create its folder if it is missing.

    A previous file is replaced only when the new one is complete.

    Args:
        path: The file.
        template: Name of the template.
        values: Its variables. Text is escaped, except ``Markup``.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # jinja2 would not infer it from a name that ends in .j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "first_line": first_line,
        "clock": _format_time,
        "number": _format_number,
        "score": _format_score,
        "seconds": _format_seconds,
        "without_password": _without_password,
    }
    text = environment.get_template(template).render(**values)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _without_password(text: str) -> str:
    """Return a text without the passwords in its URLs: users share reports."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _format_time(when: datetime | float) -> str:
    moment = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _format_number(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""


def _format_seconds(value: float | None) -> str:
    """Return seconds with three digits, at least two of them after the point below 10."""
    if value is None:
        return ""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _format_score(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else ""
