"""Filters for rows that training would refuse, and names for labels that are spelled in several ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator.first_config.guess import TaskGuess
from ttmoe.conversation import Conversation, answered_part
from ttmoe.errors import InputError
from workers.data.cells import NotTextError, cell_text
from workers.data.rows import Row, value_if_any

_MOST_MERGED = 50  # labels, of which a config names every one
_VERDICT, _VERDICTS = "answer", {"accept", "reject", "ignore"}
_NO_LABEL = "-1"  # of a row without one, where labels are counted from 0


def filter_empty_cells(guess: TaskGuess, rows: Sequence[Row]) -> TaskGuess:
    """Return the guess with a filter for each column that some rows do not fill."""
    where: list[dict[str, Any]] = []
    unclear, notes = list(guess.unclear), list(guess.notes)
    for column in guess.read_columns:
        texts = [_text(row, column) for row in rows]
        if empty := texts.count(""):
            where.append({"column": column, "matches": r"\S"})
            notes.append(f"{empty:,} of {len(rows):,} rows have no {column}, and are left out (`where`)")
        if column == guess.label and _NO_LABEL in texts and "0" in texts:
            where.append({"column": column, "not_in": [int(_NO_LABEL)]})
            count = f"{texts.count(_NO_LABEL):,} of {len(rows):,} rows have the label {_NO_LABEL}"
            unclear.append(f"{count}, which is taken for none: they are left out (`where`)")
    return replace(guess, where=tuple(where), unclear=tuple(unclear), notes=tuple(notes))


def filter_rejected(guess: TaskGuess, rows: Sequence[Row]) -> TaskGuess:
    """Return the guess with a filter for rows whose label a person has rejected, as Prodigy writes them."""
    answers = [_text(row, _VERDICT) for row in rows]
    if guess.label in (None, _VERDICT) or not {"accept"} < set(answers) <= _VERDICTS:
        return guess
    note = f"{len(rows) - answers.count('accept'):,} of {len(rows):,} rows have another {_VERDICT} than accept"
    where = (*guess.where, {"column": _VERDICT, "in": ["accept"]})
    return replace(guess, where=where, notes=(*guess.notes, f"{note}, and are left out (`where`)"))


def filter_conversations(guess: TaskGuess, rows: Sequence[Row], place: str) -> TaskGuess:
    """Return the guess with a filter, if some conversations end without an answer.

    Raises:
        InputError: If a conversation cannot be read.
    """
    column = guess.columns["messages"]
    failed = [(n, row, what) for n, row in enumerate(rows, 1) if (what := _conversation_problem(row, column))]
    if not failed:
        return guess
    other = [each for each in failed if _text(each[1], f"{column}.-1.role") in ("assistant", "")]
    if not other and len(failed) < len(rows):
        where = ({"column": f"{column}.-1.role", "in": ["assistant"]},)
        kept = sum(_text(row, f"{column}.-1.role") == "assistant" for row in rows)
        note = (
            f"{len(rows) - kept:,} of {len(rows):,} conversations do not end with an answer, and are left out (`where`)"
        )
        return replace(guess, where=where, notes=(*guess.notes, note))
    number, _, what = (other or failed)[0]
    others = f" (and {len(failed) - 1:,} more rows)" if len(failed) > 1 else ""
    raise InputError(
        f"column {column!r} of row {number}: {what}{others}", where=place, fix="correct or remove the rows"
    )


def merge_spellings(guess: TaskGuess, rows: Sequence[Row]) -> TaskGuess:
    """Return the guess with names for the labels, if some differ in capitals alone: the most frequent spelling."""
    if guess.label is None or guess.label_names or guess.kind == "choice":
        return guess
    counts = Counter(filter(None, (_text(row, guess.label) for row in rows)))
    if len(counts) > _MOST_MERGED or {value.lower() for value in counts} <= {"true", "false"}:
        return guess
    spellings: dict[str, Counter[str]] = {}
    for value, count in sorted(counts.items()):
        spellings.setdefault(value.casefold(), Counter())[value] += count
    merged = {key: found for key, found in spellings.items() if len(found) > 1}
    if not merged:
        return guess
    names = {value: found.most_common(1)[0][0] for found in spellings.values() for value in sorted(found)}
    listed = "; ".join(", ".join(sorted(found)) for found in list(merged.values())[:4])
    note = f"label: {listed} differ in capitals alone, and are taken for one (`label.names`)"
    return replace(guess, label_names=names, unclear=(*guess.unclear, note))


def _conversation_problem(row: Row, column: str) -> str:
    try:
        found = Conversation.of(value_if_any(row, column))
    except ValueError as error:
        return str(error)
    return "" if answered_part(found.messages) else "no message of the assistant follows one of the user"


def _text(row: Row, column: str) -> str:
    try:
        return cell_text(value_if_any(row, column))
    except NotTextError:
        return ""
