"""A task's data made ready once: splits as Parquet files under a key of everything that decides them.

A task that is there already is opened by reading one small JSON file, so pyarrow is imported only where rows
are read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttmoe.errors import InputError
from workers.data.deduplication import RemovedCounts, deduplicate
from workers.data.examples import Example, to_examples
from workers.data.sources import read_rows, source_identity
from workers.data.splits import SPLIT_NAMES, Splits, clean_given_splits, split_examples
from workers.data.task import GivenSplits, Source, Task
from workers.recipes import RECIPES

ANSWERS = "answers"  # what rows are counted under where there are no labels


@dataclass(frozen=True)
class PreparedTask:
    """A task whose splits lie in ``folder``; ``fingerprint`` is a digest of content, label names and kind."""

    name: str
    kind: str
    label_names: tuple[str, ...]
    fingerprint: str
    counts: dict[str, dict[str, int]]  # rows by split and label name; where text is written, under ANSWERS
    majority: float  # the share of test rows that have the commonest label, or answer
    duplicates: int  # repeats of an input that is kept once
    left_out: dict[str, int]  # filtered, conflicts, leaked, sampled: why other rows are in no split
    folder: Path


def prepare_task(name: str, task: Task, cache: Path) -> PreparedTask:
    """The splits of ``task`` in ``cache``, made if they are not there; processes may do so at once.

    ``name`` is the task's in the config. Raises InputError for data that cannot be used: besides what reading
    and mapping raise, an empty split, fewer than two labels, and a label that train lacks.
    """
    folder = cache / "tasks" / _key(name, task, cache)
    if not (folder / "meta.json").exists():
        _make(name, task, cache, folder)
    meta = json.loads((folder / "meta.json").read_text())
    return PreparedTask(name=name, folder=folder, label_names=tuple(meta.pop("label_names")), **meta)


def load_split(prepared: PreparedTask, split_name: str) -> list[Example]:
    """The examples of ``train``, ``validation`` or ``test``, in an order that their content decides."""
    import pyarrow.parquet

    path = prepared.folder / f"{split_name}.parquet"
    if not path.is_file():
        fix = f"Delete {prepared.folder}; the next run makes it again." if split_name in SPLIT_NAMES else ""
        raise InputError(f"there is no split {split_name!r}", where=str(path), fix=fix)
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [Example(tuple(r["texts"]), tuple(r["choices"]), r["label"], r["group"], r.get("answer", "")) for r in rows]


def _key(name: str, task: Task, cache: Path) -> str:
    given = _sources(task)
    with _in_source(name):
        identities = {split_name: source_identity(source, cache) for split_name, source in given.items()}
    # A config may add keys of its own to a task; only those of Task decide the data. The order of label names
    # counts, so keys are not sorted.
    config = task.model_dump(mode="json", include=set(Task.model_fields), exclude_defaults=True)
    return hashlib.sha256(json.dumps([RECIPES["prepared"], config, identities]).encode()).hexdigest()


def _sources(task: Task) -> dict[str, Source]:
    if not isinstance(task.source, GivenSplits):
        return {"": task.source}
    given = {name: getattr(task.source, name) for name in SPLIT_NAMES}
    return {name: source for name, source in given.items() if source is not None}


@contextmanager
def _in_source(name: str) -> Iterator[None]:
    """Tell which task a file's error belongs to."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, where=f"tasks.{name}.source, {error.where}", fix=error.fix) from error


def _make(name: str, task: Task, cache: Path, folder: Path) -> None:
    splits, names, left_out = _read_splits(name, task, cache)
    shown = names or (ANSWERS,)
    counts = {s: {n: 0 for n in shown} for s in SPLIT_NAMES}
    for split_name, examples in splits.items():
        for example in examples:
            counts[split_name][shown[example.label]] += 1
    _check(name, task, counts)
    meta = {
        "kind": task.kind,
        "label_names": names,
        "fingerprint": _fingerprint(task.kind, names, splits),
        "counts": counts,
        "majority": max(Counter((e.label, e.answer) for e in splits["test"]).values()) / len(splits["test"]),
        "duplicates": left_out.pop("duplicates"),
        "left_out": left_out,
    }
    _write(folder, splits, meta)


def _read_splits(name: str, task: Task, cache: Path) -> tuple[Splits, tuple[str, ...], RemovedCounts]:
    """The splits, the label names, and how many rows are in none of the splits, by cause."""
    found: Splits = {}
    names: tuple[str, ...] = ()
    rows_read = 0
    for split_name, source in _sources(task).items():  # train first: its labels hold for the others
        with _in_source(name):
            rows = read_rows(source, cache)
        rows_read += len(rows)
        try:
            found[split_name], labels = to_examples(rows, task, name, names)
        except InputError as error:
            part = f" (in the {split_name} split)" if split_name else ""
            raise InputError(error.what + part, where=error.where, fix=error.fix) from error
        names = max(names, labels, key=len)  # choice tasks: the longest list of options
    usable = sum(map(len, found.values()))
    if isinstance(task.source, GivenSplits):
        splits, removed = clean_given_splits(found, task.split)
    else:
        unique, removed = deduplicate(found[""])
        splits = split_examples(unique, task.split)
    sampled = usable - removed.total() - sum(map(len, splits.values()))
    removed.update(filtered=rows_read - usable, sampled=sampled)
    return splits, names, removed


def _check(name: str, task: Task, counts: dict[str, dict[str, int]]) -> None:
    where = f"tasks.{name}"
    fix = "Look at `where`, the label's mapping and `split`; the source may hold too few rows or groups."
    if empty := [split_name for split_name in SPLIT_NAMES if not sum(counts[split_name].values())]:
        raise InputError(f"no rows in split {', '.join(empty)}", where=where, fix=fix)
    if task.label is None:
        return
    if len(counts["train"]) < 2:
        label = ", ".join(counts["train"])
        raise InputError(f"there are fewer than two labels: {label}", where=f"{where}.label", fix=fix)
    missing = [label for label, n in counts["train"].items() if not n]
    if missing and task.kind != "choice":  # an option's place need not be right in any row
        raise InputError(f"no row of train has label {', '.join(missing)}", where=f"{where}.label", fix=fix)


def _fingerprint(kind: str, names: tuple[str, ...], splits: Splits) -> str:
    digest = hashlib.sha256(json.dumps([kind, names]).encode())
    for split_name in SPLIT_NAMES:
        digest.update(f"\n{split_name}".encode())
        for e in splits[split_name]:
            # An answer stands in the digest only where there is one: other kinds keep their fingerprints.
            digest.update(json.dumps([e.texts, e.choices, e.label, *filter(None, [e.answer])]).encode())
    return digest.hexdigest()


def _write(folder: Path, splits: Splits, meta: dict[str, Any]) -> None:
    """All or nothing: a folder of that name is complete, whoever wrote it and whenever it was stopped."""
    import pyarrow
    import pyarrow.parquet

    listed = pyarrow.list_(pyarrow.string())
    kinds = {"texts": listed, "choices": listed, "label": pyarrow.int32(), "group": pyarrow.string()}
    if meta["kind"] == "generate":
        kinds["answer"] = pyarrow.string()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        for split_name, examples in splits.items():
            columns = {key: pyarrow.array([getattr(e, key) for e in examples], kind) for key, kind in kinds.items()}
            pyarrow.parquet.write_table(pyarrow.table(columns), scratch / f"{split_name}.parquet")
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1))
        scratch.chmod(0o755)  # mkdtemp's folder is its owner's alone; a cache may be shared
        os.rename(scratch, folder)
    except OSError:
        if not (folder / "meta.json").exists():  # otherwise another process was first, and made the same
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
