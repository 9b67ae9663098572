"""What is said of a task that was guessed, on the terminal and in the comments of its config."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.first_config.task_draft import TaskDraft
from orchestrator.first_config.token_lengths import RowLengths
from workers.data.prepared import REMOVED_ROWS

_SHOWN_CLASSES = 10
_LONGEST_NAME = 40


def draft_sentences(draft: TaskDraft, lengths: RowLengths) -> Iterator[str]:
    """Yield the sentences: rows and classes, tokens, notes, what is unclear, and warnings."""
    yield from seen_sentences(draft, lengths)
    yield from (f"UNCLEAR: {text}." for text in draft.guess.unclear)
    yield from (f"WARNING: {text}." for text in draft.warnings)


def seen_sentences(draft: TaskDraft, lengths: RowLengths) -> Iterator[str]:
    """Yield what is certain: rows, classes with their sizes, tokens, and how the file is read."""
    text = f"{draft.rows:,} rows"
    if removed := {reason: rows for reason, rows in draft.removed.items() if reason in REMOVED_ROWS}:
        text += ", without " + ", ".join(f"{rows:,} {REMOVED_ROWS[reason]}" for reason, rows in removed.items())
    if draft.classes:
        text += f"; {len(draft.classes)} class{'es' if len(draft.classes) > 1 else ''}: {_classes(draft.classes)}"
    yield f"{text}."
    yield f"Tokens: {lengths}."
    yield from (f"{note[0].upper()}{note[1:]}." for note in draft.notes)


def _classes(classes: dict[str, int]) -> str:
    largest = sorted(classes.items(), key=lambda each: -each[1])
    listed = ", ".join(f"{name[:_LONGEST_NAME]} {rows:,}" for name, rows in largest[:_SHOWN_CLASSES])
    return listed + (f" and {len(largest) - _SHOWN_CLASSES} more" if len(largest) > _SHOWN_CLASSES else "")
