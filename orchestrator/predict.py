"""``ttmoe predict``: answers of a library's routed model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.library import open_library
from ttmoe.errors import InputError


def predict_texts(root: Path, library: str | None, texts: Sequence[str], console: Console) -> None:
    """Print task, label and confidence for each text."""
    empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if empty:
        raise InputError(f"text {empty[0]} is empty", where="predict", fix="leave it out")
    registry, name = open_library(root, library)
    router = registry.router(name)
    if router is None:
        raise InputError(f"library {name!r} has no router yet", where=str(root), fix="let its run come to its end")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the base lies in a folder; nothing is to be asked of a hub
    from orchestrator.pyfunc import load_folder

    model = load_folder(registry.fetch(router)).model
    table = Table(box=SIMPLE_HEAD)
    for head in ("text", "task", "label", "confidence", "routing"):
        table.add_column(head, justify="right" if head in ("confidence", "routing") else "left", overflow="fold")
    for text, answer in zip(texts, model.predict(list(texts)), strict=True):
        table.add_row(
            escape(text),
            answer.task,
            escape(answer.label),
            f"{answer.confidence:.3f}",
            f"{answer.routing:.3f}",
        )
    console.print(table)
