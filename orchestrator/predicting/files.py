"""``ttmoe predict --file``: a file, or several, answered here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.predicting.answers import answered
from orchestrator.predicting.columns import Columns, Row
from orchestrator.predicting.meter import Meter
from orchestrator.predicting.opening import open_router, say
from orchestrator.predicting.rows import Piece, files_of, read
from orchestrator.predicting.survey import survey
from orchestrator.predicting.writing import check_out, output
from ttmoe.errors import InputError

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

ROWS_AT_ONCE = 2048
"""Rows that are in memory; of these, rows of like length share a batch."""


def predict_files(
    root: Path,
    library: str | None,
    pattern: str,
    columns: Columns,
    out: Path | None,
    force: bool,
    batch_size: int,
    device: str,
    messages: Console,
) -> None:
    """Answer every row, in order, into ``out`` or as lines of JSON on standard output.

    Raises InputError before the model is loaded where a row cannot be asked, or ``out`` cannot be written.
    """
    files = files_of(pattern)
    if out is not None:
        check_out(out, files, force)
    router = open_router(root, library, device, messages)
    found = survey(files, columns)
    model = router.load(device)
    with output(out, found) as write, Meter(messages, found.rows) as meter:
        for piece in found.pieces(ROWS_AT_ONCE):
            rows = answer_piece(model, piece, columns, batch_size)
            write(rows)
            meter.advance(len(rows))
    if out is not None:
        say(messages, f"wrote {out}")


def answer_piece(model: RoutedModel, piece: Piece, columns: Columns, batch_size: int) -> list[Row]:
    """The piece's rows with their answers. Raises InputError where the file is not the one that was surveyed."""
    reads = list(read(piece))
    if len(reads) != piece.rows:
        fix = "type the command again when nothing writes to it"
        raise InputError("the file changed while it was read", where=piece.path, fix=fix)
    answers = model.predict([columns.input_of(found.row, found.where) for found in reads], batch_size)
    return [answered(found.row, answer) for found, answer in zip(reads, answers, strict=True)]
