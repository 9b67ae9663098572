"""``ttmoe predict --file``: answer the rows of files in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.predict.input_columns import InputColumns, Row
from orchestrator.predict.messages import ThroughputDisplay, print_line
from orchestrator.predict.readers import FileChunk, find_files, read_chunk
from orchestrator.predict.request import PredictRequest
from orchestrator.predict.routed_model import open_router
from orchestrator.predict.scan import scan_files
from orchestrator.predict.writers import check_output, open_output, with_answer
from ttmoe.errors import InputError

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

ROWS_IN_MEMORY = 2048
"""Rows that are read and answered together; rows of similar length share a batch."""


def predict_files(request: PredictRequest, messages: Console) -> None:
    """Answer every row of ``request.file`` in order; write them to ``request.out``, or print lines of JSON.

    Raises:
        InputError: Before the model is loaded, if a row cannot be answered or ``request.out`` cannot be written.
    """
    files = find_files(request.file or "", request.encoding, request.delimiter, request.quotes)
    if request.out is not None:
        check_output(request.out, files, request.force)
    router = open_router(request, messages)
    scan = scan_files(files, request.columns)
    model = router.load(request.device)
    with open_output(request.out, scan) as write, ThroughputDisplay(messages, scan.rows) as display:
        for chunk in scan.merge_chunks(ROWS_IN_MEMORY):
            rows = answer_chunk(model, chunk, request.columns, request.batch_size)
            write(rows)
            display.advance(len(rows))
    if request.out is not None:
        print_line(messages, f"wrote {request.out}")


def answer_chunk(model: RoutedModel, chunk: FileChunk, columns: InputColumns, batch_size: int) -> list[Row]:
    """Return the rows of a chunk with their answers.

    Raises:
        InputError: If the file has changed since it was scanned.
    """
    reads = list(read_chunk(chunk))
    if len(reads) != chunk.rows:
        fix = "repeat the command while no other program writes to the file"
        raise InputError("the file changed while it was read", where=chunk.path, fix=fix)
    answers = model.predict([columns.input_of(read.row, read.where) for read in reads], batch_size)
    return [with_answer(read.row, answer) for read, answer in zip(reads, answers, strict=True)]
