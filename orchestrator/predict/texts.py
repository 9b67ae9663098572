"""Answer texts and rows that are given at once, or lines of standard input as they arrive."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.predict.input_columns import MESSAGES, TEXT, InputColumns, Row, output_names
from orchestrator.predict.messages import print_line
from orchestrator.predict.readers import decode_line
from orchestrator.predict.request import PredictRequest
from orchestrator.predict.routed_model import open_router
from orchestrator.predict.streaming import terminal_streamer
from orchestrator.predict.writers import print_rows, with_answer
from ttmoe.encoding import Input
from ttmoe.errors import InputError
from workers.data.sources import json_row

if TYPE_CHECKING:
    from ttmoe.prediction import Prediction
    from ttmoe.routed import RoutedModel

_BATCHES = 8  # batches per call of the model when many lines are waiting: rows of similar length then share a batch


def answer_rows(
    request: PredictRequest,
    rows: Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, str]]],
    messages: Console,
    streamer: Callable[[RoutedModel], Any] | None = None,
) -> list[tuple[Row, Prediction]]:
    """Answer texts, conversations (lists of messages), or rows with the columns of ``request``.

    Args:
        request: The request.
        rows: The texts and rows.
        messages: Console for warnings.
        streamer: Makes what receives the tokens of a single text as they are generated.

    Returns:
        Each row, of a text with the column ``text``, and its answer.

    Raises:
        InputError: If a row cannot be answered, or the library has no router.
    """
    inputs: list[tuple[Row, Input]] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, list | tuple):
            row = {MESSAGES: list(row)}
        if isinstance(row, Mapping):
            inputs.append(_with_input(dict(row), f"row {number}", request.columns))
        elif isinstance(row, str) and row.strip():
            inputs.append(({TEXT: row}, row))
        else:
            raise InputError(f"text {number} is empty", where="predict", fix="remove it")
    if not inputs:
        return []
    model = open_router(request, messages).load(request.device)
    more = {"streamer": streamer(model)} if streamer and len(inputs) == 1 else {}
    answers = model.predict([row_input for _, row_input in inputs], request.batch_size, **more)
    return [(row, answer) for (row, _), answer in zip(inputs, answers, strict=True)]


def predict_texts(request: PredictRequest, console: Console, messages: Console) -> None:
    """Print a table of the answers to ``request.texts``, or with ``request.as_json`` lines of JSON with all scores.

    On a terminal, a text that is generated for a single input is printed as it comes.

    Raises:
        InputError: If a text is empty, or the library has no router.
    """
    streams = console.is_terminal and not request.as_json
    answered = answer_rows(request, request.texts, messages, terminal_streamer if streams else None)
    if request.as_json:
        print_rows([with_answer(row, answer) for row, answer in answered])
        return
    [*_, (_, answer)] = answered
    if streams and len(answered) == 1 and answer.label and not answer.scores:  # its text has been printed
        line = f"{answer.task}, confidence {answer.confidence:.3f}, routing {answer.routing:.3f}"
        print_line(messages, line)
        return
    table = Table(box=SIMPLE_HEAD)
    for head in ("text", "task", "label", "confidence", "routing"):
        table.add_column(head, justify="right" if head in ("confidence", "routing") else "left", overflow="fold")
    for row, answer in answered:
        numbers = (f"{answer.confidence:.3f}", f"{answer.routing:.3f}")
        table.add_row(escape(row[TEXT]), answer.task, escape(answer.label), *numbers)
    console.print(table)


def predict_stream(request: PredictRequest, stdin: TextIO, messages: Console) -> None:
    """Print a line of JSON for every line of ``stdin`` that is not blank, in order and without waiting for more lines.

    A line is a text, or a JSON object with the columns of ``request``.

    Raises:
        InputError: If a line cannot be answered, after the lines before it were; if ``stdin`` is a terminal; or if it
            is empty and ``-`` was not given.
    """
    no_input = "give texts, a file with --file, or lines on standard input: cat texts.txt | ttmoe predict"
    if stdin.isatty():
        raise InputError("no input was given", where="predict", fix=no_input)
    router, model, number = open_router(request, messages), None, 0
    for lines in read_line_batches(stdin, request.batch_size * _BATCHES):
        rows, error = _parse_lines(lines, number, request.columns)
        number += len(lines)
        if rows:
            model = model or router.load(request.device)
            answers = model.predict([row_input for _, row_input in rows], request.batch_size)
            print_rows([with_answer(row, answer) for (row, _), answer in zip(rows, answers, strict=True)])
        if error:
            raise error
    if not number and not request.texts:
        raise InputError("no input was given", where="predict", fix=no_input)


def read_line_batches(stdin: TextIO, max_lines: int) -> Iterator[list[bytes]]:
    """Yield lists of the lines that are available without waiting, at most ``max_lines`` each, without line feeds."""
    rest, waiting = b"", list[bytes]()
    for data, more in _read_available(stdin):
        *lines, rest = (rest + data).split(b"\n")
        waiting += lines
        while len(waiting) >= max_lines or (waiting and not more):
            yield waiting[:max_lines]
            del waiting[:max_lines]
    waiting += [rest] if rest else []
    for start in range(0, len(waiting), max_lines):
        yield waiting[start : start + max_lines]


def _read_available(stdin: TextIO) -> Iterator[tuple[bytes, bool]]:
    """Yield data as it arrives, and whether more data (or the end) is available already."""
    try:
        descriptor = stdin.fileno()
    except (OSError, ValueError):  # not a file of the operating system: read all of it
        yield stdin.buffer.read(), False
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while data := os.read(descriptor, 2**16):
        yield data, bool(poll.poll(0))


def _parse_lines(
    lines: list[bytes], lines_before: int, columns: InputColumns
) -> tuple[list[tuple[Row, Input]], InputError | None]:
    """Return the rows and model inputs before the first line that cannot be answered, and the error of that line."""
    rows: list[tuple[Row, Input]] = []
    for number, data in enumerate(lines, lines_before + 1):
        where = f"standard input:{number}"
        try:
            line = decode_line(data, "standard input", number).removeprefix("\ufeff").strip()
            if line.startswith("{"):
                rows.append(_with_input(json_row(line, where), where, columns))
            elif line:
                rows.append(({TEXT: line}, line))
        except InputError as error:
            return rows, error
    return rows, None


def _with_input(row: Row, where: str, columns: InputColumns) -> tuple[Row, Input]:
    """Return a row and the model's input for it; raise InputError if it cannot be answered or written."""
    output_names(row, where)
    return row, columns.input_of(row, where)
