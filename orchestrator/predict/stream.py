"""``... | ttmoe predict``: a line in, a line of JSON out, as they come."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console

from orchestrator.predict.answers import with_answer
from orchestrator.predict.input_columns import TEXT, InputColumns, Row, output_names
from orchestrator.predict.readers import decode_line
from orchestrator.predict.routed_model import open_router
from orchestrator.predict.writers import print_rows
from ttmoe.encoding import Input
from ttmoe.errors import InputError
from workers.data.sources import json_row

_BATCHES = 8  # that are asked at once where so many lines wait: rows of like length then share a batch


def predict_stream(
    root: Path,
    library: str | None,
    columns: InputColumns,
    batch_size: int,
    device: str,
    stdin: TextIO,
    asked_for: bool,
    messages: Console,
) -> None:
    """Answer every line of ``stdin`` that is not blank, in order: a text, or an object with the ``columns``.

    Nothing waits for lines that have not come. Raises InputError at a line that cannot be asked, when those before it
    were answered; and where nothing comes at all, unless standard input was ``asked_for`` by name.
    """
    if stdin.isatty():
        fix = "give texts, a file with --file, or lines: cat texts.txt | ttmoe predict"
        raise InputError("there is nothing to answer", where="predict", fix=fix)
    router, model, number = open_router(root, library, device, messages), None, 0
    for lines in read_line_batches(stdin, batch_size * _BATCHES):
        asked, fault = _parsed(lines, number, columns)
        number += len(lines)
        if asked:
            model = model or router.load(device)
            answers = model.predict([row_input for _, row_input in asked], batch_size)
            print_rows([with_answer(row, answer) for (row, _), answer in zip(asked, answers, strict=True)])
        if fault:
            raise fault
    if not number and not asked_for:
        fix = "give texts, a file with --file, or lines on standard input"
        raise InputError("there is nothing to answer", where="predict", fix=fix)


def read_line_batches(stdin: TextIO, most: int) -> Iterator[list[bytes]]:
    """The lines as they come: those that are there, up to ``most`` of them."""
    rest, waiting = b"", list[bytes]()
    for data, more in _arrivals(stdin):
        *whole, rest = (rest + data).split(b"\n")
        waiting += whole
        while len(waiting) >= most or (waiting and not more):
            yield waiting[:most]
            del waiting[:most]
    waiting += [rest] if rest else []
    for start in range(0, len(waiting), most):
        yield waiting[start : start + most]


def _arrivals(stdin: TextIO) -> Iterator[tuple[bytes, bool]]:
    """What came, and whether more (or the end) is there already."""
    try:
        number = stdin.fileno()
    except (OSError, ValueError):  # no file of the system: all of it is there
        yield stdin.buffer.read(), False
        return
    waiting = select.poll()
    waiting.register(number, select.POLLIN)
    while data := os.read(number, 2**16):
        yield data, bool(waiting.poll(0))


def _parsed(
    lines: list[bytes], before: int, columns: InputColumns
) -> tuple[list[tuple[Row, Input]], InputError | None]:
    """The rows with their inputs, up to the first line that cannot be asked, and what is wrong with that."""
    asked: list[tuple[Row, Input]] = []
    for number, raw in enumerate(lines, before + 1):
        where = f"standard input:{number}"
        try:
            line = decode_line(raw, where).removeprefix("\ufeff").strip()
            if not line:
                continue
            row, its = (json_row(line, where), columns) if line.startswith("{") else ({TEXT: line}, InputColumns())
            output_names(row, where)
            asked.append((row, its.input_of(row, where)))
        except InputError as error:
            return asked, error
    return asked, None
