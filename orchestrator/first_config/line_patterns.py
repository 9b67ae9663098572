"""Patterns of text files with one row on a line: logs, and lines that begin with a label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

_LEVELS = "TRACE|DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL|SEVERE"
_PATTERNS = (
    (r"^__label__(?P<label>\S+)\s+(?P<text>\S.*)$", "lines of fastText, with a label and a text"),
    # The level stands after time and host, at most, and never in the text itself.
    (rf"^.{{0,60}}?\b(?P<level>{_LEVELS})\b[\]\s:|-]*(?P<text>\S.*)$", "lines of a log, with a level and a text"),
)
_LABEL_FIRST = (r"^(?P<label>[^\t]{1,40})\t(?P<text>[^\t]+)$", "lines with a label, a tab and a text")
_LABEL_LAST = (r"^(?P<text>[^\t]+)\t(?P<label>[^\t]{1,40})$", "lines with a text, a tab and a label")
_LEAST_SHARE = 0.5  # of the lines: those of a traceback in a log have no level
_MOST_LABELS = 50


def find_line_pattern(lines: Sequence[str]) -> tuple[str, int, str] | None:
    """Return a pattern that reads the lines, the number of lines that it matches, and what they are; or None.

    Args:
        lines: The lines that are not blank.
    """
    for pattern, what in _PATTERNS:
        matching = sum(re.search(pattern, line) is not None for line in lines)
        if matching >= _LEAST_SHARE * len(lines):
            return pattern, matching, what
    found = [each for each in map(partial(_with_label, lines), (_LABEL_FIRST, _LABEL_LAST)) if each]
    return min(found)[1:] if found else None


def _with_label(lines: Sequence[str], form: tuple[str, str]) -> tuple[int, str, int, str] | None:
    """Return the words of all labels, and what ``find_line_pattern`` returns; None for lines of another form."""
    pattern, what = form
    labels = [match["label"] for line in lines if (match := re.search(pattern, line))]
    few = 2 <= len(set(labels)) <= min(_MOST_LABELS, len(lines) // 2)
    # The first line of a table with names has a label of its own.
    if len(labels) < 0.9 * len(lines) or not few or labels.count(labels[0]) == 1:
        return None
    return sum(len(label.split()) for label in labels), pattern, len(labels), what
