"""``ttmoe predict --file``: a file, or several, answered here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.predict.answers import with_answer
from orchestrator.predict.input_columns import InputColumns, Row
from orchestrator.predict.readers import FileChunk, find_files, read_chunk
from orchestrator.predict.routed_model import open_router, print_line
from orchestrator.predict.scan import scan_files
from orchestrator.predict.throughput import ThroughputDisplay
from orchestrator.predict.writers import check_output, open_output
from ttmoe.errors import InputError

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

ROWS_AT_ONCE = 2048
"""Rows that are in memory; of these, rows of like length share a batch."""


def predict_files(
    root: Path,
    library: str | None,
    pattern: str,
    columns: InputColumns,
    out: Path | None,
    force: bool,
    batch_size: int,
    device: str,
    messages: Console,
) -> None:
    """Answer every row, in order, into ``out`` or as lines of JSON on standard output.

    Raises InputError before the model is loaded where a row cannot be asked, or ``out`` cannot be written.
    """
    files = find_files(pattern)
    if out is not None:
        check_output(out, files, force)
    router = open_router(root, library, device, messages)
    found = scan_files(files, columns)
    model = router.load(device)
    with open_output(out, found) as write, ThroughputDisplay(messages, found.rows) as meter:
        for piece in found.pieces(ROWS_AT_ONCE):
            rows = answer_chunk(model, piece, columns, batch_size)
            write(rows)
            meter.advance(len(rows))
    if out is not None:
        print_line(messages, f"wrote {out}")


def answer_chunk(model: RoutedModel, piece: FileChunk, columns: InputColumns, batch_size: int) -> list[Row]:
    """The piece's rows with their answers. Raises InputError where the file is not the one that was surveyed."""
    reads = list(read_chunk(piece))
    if len(reads) != piece.rows:
        fix = "type the command again when nothing writes to it"
        raise InputError("the file changed while it was read", where=piece.path, fix=fix)
    answers = model.predict([columns.input_of(found.row, found.where) for found in reads], batch_size)
    return [with_answer(found.row, answer) for found, answer in zip(reads, answers, strict=True)]
