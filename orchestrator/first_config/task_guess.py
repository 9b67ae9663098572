"""Guess what a task is from its columns: the kind, the columns of the input, and the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.first_config.choice_guess import guess_choice
from orchestrator.first_config.column_choice import (
    find_labels,
    find_texts,
    has_label_name,
    is_named_label,
    is_named_text,
)
from orchestrator.first_config.column_names import (
    MESSAGES_NAMES,
    OTHER_NAMES,
    PAIR_NAMES,
    PROMPT_ANSWER_NAMES,
    WEAK_PROMPT_ANSWER_NAMES,
)
from orchestrator.first_config.column_profile import ColumnProfile
from orchestrator.first_config.guess import TaskGuess
from ttmoe.errors import InputError

_MOST_NAMED = 4  # columns that a sentence lists


def guess_task(columns: Sequence[ColumnProfile], place: str) -> TaskGuess:
    """Return the guess of a task.

    Args:
        columns: The columns of its rows.
        place: The file, for errors.

    Raises:
        InputError: If no column could be a text, or there is neither a label nor an answer.
    """
    guesses: tuple[Callable[[Sequence[ColumnProfile]], TaskGuess | None], ...] = (
        _guess_chat, guess_choice, _guess_strong_generate, _guess_pair, _guess_named_text, _guess_weak_generate,
        _guess_text,
    )  # fmt: skip
    for guess in guesses:
        if (found := guess(columns)) is not None:
            return found
    raise _no_guess(columns, place)


def _guess_chat(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    found = [each for each in columns if each.shape == "messages"]
    if not found:
        return None
    found.sort(key=lambda each: each.plain_name not in MESSAGES_NAMES)
    unclear = _others("messages", found[0], found[1:], "it comes first, or has the name of conversations")
    return TaskGuess("chat", {"messages": found[0].path}, unclear=unclear)


def _guess_strong_generate(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    return _guess_generate(columns, PROMPT_ANSWER_NAMES)


def _guess_weak_generate(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    return _guess_generate(columns, WEAK_PROMPT_ANSWER_NAMES)


def _guess_generate(columns: Sequence[ColumnProfile], names: Sequence[tuple[str, str]]) -> TaskGuess | None:
    found = _named_pair(columns, names)
    if found is None or len(found[1].counts) <= 0.1 * found[1].filled:  # few answers are labels
        return None
    prompt, answer = found
    unclear: list[str] = []
    if more := [
        each for each in columns if each.plain_name in ("input", "context") and each not in found and each.filled
    ]:
        share = f"{more[0].filled / more[0].rows:.0%}"
        unclear.append(
            f"column {more[0].path} has a text in {share} of the rows, and is not read: a prompt is one column. If the "
            f"answers need it, write it into {prompt.path}"
        )
    if labels := [each for each in find_labels(columns, [each.path for each in found]) if is_named_label(each)]:
        unclear.append(
            f"kind generate: column {labels[0].path} ({_values(labels[0])}) could also be the label of a task of kind "
            f"text; {prompt.path} and {answer.path} have the names of a prompt and its answer"
        )
    return TaskGuess("generate", {"prompt": prompt.path, "answer": answer.path}, unclear=tuple(unclear))


def _guess_pair(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    found = _named_pair(columns, PAIR_NAMES)
    if found is None:
        return None
    first, second = found
    labels = find_labels(columns, [first.path, second.path])
    if not labels or (first.plain_name in ("question", "query") and not is_named_label(labels[0])):
        return None
    label, unclear = _choose_label(labels)
    return TaskGuess("pair", {"first": first.path, "second": second.path}, label.path, unclear=unclear)


def _guess_named_text(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    guess = _guess_text(columns)
    label = next((each for each in columns if guess and each.path == guess.label), None)
    return guess if label and is_named_label(label) else None


def _guess_text(columns: Sequence[ColumnProfile]) -> TaskGuess | None:
    labels = find_labels(columns)
    texts = find_texts(columns, [each.path for each in labels if is_named_label(each)])
    if not texts:
        return None
    text = texts[0]
    labels = [each for each in labels if each is not text]
    if not labels:
        return None
    label, unclear = _choose_label(labels)
    rivals = [each for each in texts[1:] if each is not label and _is_rival(each, text)]
    reason = "it has the name of a text" if is_named_text(text) else "its values are the longest"
    unclear += _others("text", text, rivals, f"{reason}; kind pair reads two")
    if not rivals and not is_named_text(text):
        unclear += (f"text: no column has the name of a text; {text.path} was chosen because {reason}",)
    return TaskGuess("text", {"text": text.path}, label.path, unclear=unclear)


def _is_rival(other: ColumnProfile, chosen: ColumnProfile) -> bool:
    long = other.mean_length >= max(15, chosen.mean_length / 4)
    return long and len(other.counts) > 0.3 * other.filled and other.filled > 0.3 * other.rows


def _choose_label(labels: Sequence[ColumnProfile]) -> tuple[ColumnProfile, tuple[str, ...]]:
    """Return the label, and which other columns could have been meant."""
    chosen = labels[0]
    named = [each for each in labels if is_named_label(each)]
    twin = next((each for each in labels[1:] if _is_twin(chosen, each)), None)
    if twin is not None and chosen.shape == "number" and twin.shape == "text":
        chosen = twin  # the same classes with names
    others = named if has_label_name(chosen) else labels
    rivals = [each for each in others if each is not chosen and len(each.counts) > 1 and not _is_twin(chosen, each)]
    if named:
        return chosen, _others("label", chosen, rivals, "it has the name of a label")
    few = f"{chosen.path} was chosen because it has few values, each in several rows"
    if rivals:
        return chosen, _others("label", chosen, rivals, few.partition("because ")[2])
    return chosen, (f"label: no column has the name of a label; {few} ({_values(chosen)})",)


def _is_twin(one: ColumnProfile, other: ColumnProfile) -> bool:
    """Return whether two columns have the same classes under other names."""
    if len(one.values) != len(other.values) or len(one.counts) != len(other.counts):
        return False
    return len(set(zip(one.values, other.values, strict=True))) == len(one.counts)


def _others(role: str, chosen: ColumnProfile, rivals: Sequence[ColumnProfile], reason: str) -> tuple[str, ...]:
    if not rivals:
        return ()
    listed = ", ".join(f"{each.path} ({_values(each)})" for each in rivals[:_MOST_NAMED])
    more = f" and {len(rivals) - _MOST_NAMED} more" if len(rivals) > _MOST_NAMED else ""
    return (f"{role}: {listed}{more} could have been meant too; {chosen.path} was chosen because {reason}",)


def _values(column: ColumnProfile) -> str:
    different = len(column.counts)
    if column.shape == "messages":
        return "conversations"
    return (
        f"{different:,} values"
        if different < 0.5 * column.filled
        else f"{column.mean_length:.0f} characters on average"
    )


def _named_pair(
    columns: Sequence[ColumnProfile], names: Sequence[tuple[str, str]]
) -> tuple[ColumnProfile, ColumnProfile] | None:
    by_name = {each.plain_name: each for each in reversed(columns) if each.shape == "text"}
    for first, second in names:
        if first in by_name and second in by_name and len(by_name[first].counts) > 1:
            return by_name[first], by_name[second]
    return None


def _no_guess(columns: Sequence[ColumnProfile], place: str) -> InputError:
    """Return the error of rows with nothing to learn."""
    seen = ", ".join(f"{each.path} ({_describe(each)})" for each in columns[:12])
    texts = [each for each in find_texts(columns) if each.plain_name not in OTHER_NAMES]
    if not texts:
        what = f"no column could be a text to classify or to answer; columns: {seen}"
        return InputError(what, where=place, fix="add a column with texts, and one with labels or answers")
    text = texts[0].path
    fix = (
        f"add a column `label` with the class of each row, or `answer` with the text to write after {text}. If it has "
        "another name, rename it so; or write the task by hand into the config of `ttmoe init`"
    )
    single = [each for each in columns if len(each.counts) == 1 and is_named_label(each)]
    what = f"there is no label and no answer to learn: {text} is a text, but no other column has few values"
    if single:
        what = f"there is nothing to learn: every row has the label {next(iter(single[0].counts))!r} ({single[0].path})"
        fix = "add rows of other classes"
    numbers = [each for each in columns if each.shape == "number" and is_named_label(each) and len(each.counts) > 1]
    if numbers:
        ranges = f"label: {{column: {numbers[0].path}, ranges: {{low: [null, 0.5], high: [0.5, null]}}}}"
        fix += f", where ranges of a number are classes: {ranges}"
    return InputError(f"{what}; columns: {seen}", where=place, fix=fix)


def _describe(column: ColumnProfile) -> str:
    if column.shape in ("list", "messages"):
        return {"list": "lists", "messages": "conversations"}[column.shape]
    return f"{len(column.counts):,} values, {column.mean_length:.0f} characters on average"
