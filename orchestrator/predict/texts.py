"""``ttmoe predict TEXT...``: a table, or lines of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.predict.answers import with_answer
from orchestrator.predict.routed_model import open_router
from orchestrator.predict.writers import print_rows
from ttmoe.errors import InputError


def predict_texts(
    root: Path,
    library: str | None,
    texts: Sequence[str],
    as_json: bool,
    batch_size: int,
    device: str,
    console: Console,
    messages: Console,
) -> None:
    """Print task, label, confidence and routing for each text; as JSON its scores, too."""
    empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if empty:
        raise InputError(f"text {empty[0]} is empty", where="predict", fix="leave it out")
    answers = open_router(root, library, device, messages).load(device).predict(list(texts), batch_size)
    if as_json:
        print_rows([with_answer({"text": text}, answer) for text, answer in zip(texts, answers, strict=True)])
        return
    table = Table(box=SIMPLE_HEAD)
    for head in ("text", "task", "label", "confidence", "routing"):
        table.add_column(head, justify="right" if head in ("confidence", "routing") else "left", overflow="fold")
    for text, answer in zip(texts, answers, strict=True):
        numbers = (f"{answer.confidence:.3f}", f"{answer.routing:.3f}")
        table.add_row(escape(text), answer.task, escape(answer.label), *numbers)
    console.print(table)
