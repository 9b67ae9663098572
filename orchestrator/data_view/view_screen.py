"""``ttmoe data``: print the tasks of a config as training sees them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.data_view.library_view import LibraryView
from orchestrator.data_view.shared_inputs import SharedInputs
from orchestrator.data_view.task_view import TaskView
from orchestrator.first_config.token_lengths import COUNTED_ROWS
from orchestrator.plan.json_output import to_json
from workers.data.examples import Example
from workers.data.prepared import REMOVED_ROWS

_SHOWN_CLASSES = 10
_SHOWN_SHARED = 10
_LABEL_WIDTH = 11


def show_library_view(view: LibraryView, console: Console, *, as_json: bool = False) -> None:
    """Print the tasks.

    Args:
        view: The tasks.
        console: Where they are printed.
        as_json: Print one JSON object instead.
    """
    if as_json:
        console.out(to_json(view.to_dict()), highlight=False)
        return
    for name, task in view.tasks.items():
        _show_task(name, task, view.max_length, console)
    for line in _shared_lines(view.shared):
        _print(console, line)


def _show_task(name: str, task: TaskView, max_length: int, console: Console) -> None:
    _print(console, f"{name}: kind {task.data.kind}")
    for split, source in task.sources.items():
        _print(console, f"  {split or 'source':<{_LABEL_WIDTH}}{source}")
    for label, text in _lines(task, max_length):
        _print(console, f"  {label:<{_LABEL_WIDTH}}{text}")
    if task.data.label_names:
        console.print(_class_table(task))
    if task.rows:
        _print(console, f"  {len(task.rows)} rows of train as they will be read")
        for number, row in enumerate(task.rows, 1):
            for i, (part, text) in enumerate(_row_lines(task, row)):
                line = f"  {'' if i else number:<2} {part:<{_LABEL_WIDTH}}{text}"
                _print(console, line if len(line) <= console.width else f"{line[: console.width - 1]}…")
    _print(console, "")


def _lines(task: TaskView, max_length: int) -> Iterator[tuple[str, str]]:
    """Yield lines about columns, rows, what was left out, and tokens; each is a label and a text."""
    data = task.data
    if task.columns:
        yield "columns", ", ".join(f"{key}: {_listed(value)}" for key, value in task.columns.items())
    total = sum(data.rows.values()) + sum(data.removed.values())
    splits = ", ".join(f"{split} {rows:,}" for split, rows in data.rows.items())
    yield "rows", f"{total:,}: {splits}"
    if data.removed:
        yield "left out", ", ".join(f"{rows:,} {REMOVED_ROWS[reason]}" for reason, rows in data.removed.items())
    if task.lengths is None:
        known = (
            f"{data.declared_tokens:,} in each row, as declared"
            if data.declared_tokens
            else "unknown: the base has no tokenizer"
        )
        yield "tokens", known
        return
    sample = f" (of {COUNTED_ROWS:,} rows)" if data.rows["train"] > COUNTED_ROWS else ""
    yield "tokens", f"{task.lengths}{sample}"
    share = (
        "no row has"
        if not task.cut_share
        else "fewer than 1% have"
        if task.cut_share < 0.01
        else f"{task.cut_share:.0%} have"
    )
    yield "", f"{share} more than base.max_length ({max_length:,}){', and are cut' if task.cut_share else ''}"


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _class_table(task: TaskView) -> Table:
    """Return the rows by class and split, of the largest classes."""
    counts = task.data.counts
    totals = {label: sum(counts[split][label] for split in counts) for label in task.data.label_names}
    largest = sorted(totals, key=lambda label: -totals[label])[:_SHOWN_CLASSES]
    shown = [label for label in totals if label in largest]
    table = Table(box=SIMPLE_HEAD)
    table.add_column("option" if task.data.kind == "choice" else "class", overflow="fold", max_width=40)
    for split in counts:
        table.add_column(split, justify="right", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    for label in shown:
        table.add_row(escape(label), *(f"{counts[split][label]:,}" for split in counts), f"{totals[label]:,}")
    if rest := [label for label in totals if label not in largest]:
        sums = [sum(counts[split][label] for label in rest) for split in counts]
        table.add_row(f"and {len(rest)} more", *(f"{n:,}" for n in sums), f"{sum(sums):,}", style="dim")
    return table


def _row_lines(task: TaskView, row: Example) -> Iterator[tuple[str, str]]:
    """Yield the parts of a row: the name of each and its text on one line."""
    for key, value in task.fields(row).items():
        if key == "messages":
            yield from ((each["role"], _one_line(each["content"])) for each in value)
        elif key == "choices":
            yield from ((f"option {i}", _one_line(option)) for i, option in enumerate(value))
        else:
            yield key, _one_line(value)


def _one_line(text: str) -> str:
    """Return a text on one line: line feeds and other control characters as Python writes them."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _shared_lines(shared: tuple[SharedInputs, ...]) -> Iterator[str]:
    if not shared:
        return
    yield "rows that two tasks share (the router cannot tell by them which task is meant):"
    for each in shared[:_SHOWN_SHARED]:
        yield f"  {each.tasks[0]} and {each.tasks[1]}: {each.count:,}, such as {_one_line(each.sample)[:60]!r}"
    if len(shared) > _SHOWN_SHARED:
        yield f"  and {len(shared) - _SHOWN_SHARED} more pairs of tasks (--json lists all)"


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
