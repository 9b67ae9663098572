"""Durations, sizes and lists of names as text for tables and messages."""

from __future__ import annotations

from collections.abc import Sequence

import humanize


def format_duration(seconds: float) -> str:
    """Return seconds as text: ``42 seconds``, ``7 minutes``, ``2 hours and 5 minutes``, ``3 days and 4 hours``.

    Args:
        seconds: A length of time in seconds; negative values count as 0.
    """
    whole = max(0, round(seconds))
    if whole < 100:
        return humanize.precisedelta(whole, suppress=["minutes"], format="%d")
    unit = "minutes" if whole < 48 * 3600 else "hours"
    return humanize.precisedelta(whole, minimum_unit=unit, suppress=["months", "years"], format="%.0f")


def format_bytes(size: float) -> str:
    """Return a number of bytes as text in decimal units: ``512 Bytes``, ``12.0 kB``, ``5.3 MB``, ``47.0 GB``."""
    return humanize.naturalsize(size)


def format_names(names: Sequence[str], most: int = 5) -> str:
    """Return names as text, at most ``most`` of them: ``a, b, c and 4 more``."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
