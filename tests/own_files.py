"""Files of a user's own, as five tools write them: a spreadsheet, pandas, `datasets`, a logger and a label tool."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny

ROWS = 90


def write_own_files(folder: Path) -> list[Path]:
    """Write the five files. One word decides a row's label, as in ``tiny``."""
    return [write(folder) for write in (write_spreadsheet, write_pandas, write_datasets, write_log, write_label_tool)]


def sentence_rows(words: tuple[str, ...], filler: str, seed: int = 0) -> Iterator[tuple[int, str, str]]:
    for number, (text, word) in enumerate(tiny.sentences(ROWS, words, filler, seed)):
        yield number, text, word


def write_spreadsheet(folder: Path) -> Path:
    """Excel's "CSV UTF-8" where a comma is the decimal sign: semicolons, a byte order mark, CRLF, and empty columns."""
    lines = ["Nr;Datum;Kommentar;Kategorie;;"]
    for number, text, word in sentence_rows(tiny.COLOURS, "north"):
        lines.append(f'{number};{number % 28 + 1:02}.03.2024;"{text}; {text.split()[0]} ""x""";{word};;')
    lines += [f"{ROWS};01.04.2024;;red;;", f"{ROWS + 1};02.04.2024;north0;;;", ""]
    path = folder / "Kundenstimmen 2024.csv"
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    return path


def write_pandas(folder: Path) -> Path:
    """``DataFrame.to_parquet`` of some rows of a table: with a column of its index, and labels as numbers."""
    import pandas

    frame = pandas.DataFrame(
        [{"headline": text, "target": tiny.ANIMALS.index(word), "score": number / 7}
         for number, text, word in sentence_rows(tiny.ANIMALS, "south")]
    )  # fmt: skip
    path = folder / "headlines.parquet"
    frame[frame.index % 9 != 0].to_parquet(path)
    return path


def write_datasets(folder: Path) -> Path:
    """``Dataset.to_json`` of pairs with class labels, of which one row has none (-1, as in SNLI)."""
    import datasets

    names = list(tiny.COLOURS)
    rows = [(text, word) for _, text, word in sentence_rows(tiny.COLOURS, "south", 1)]
    features = {
        "premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names), "idx": datasets.Value("int32"),
    }  # fmt: skip
    table = {
        "premise": [text for text, _ in rows], "hypothesis": [text[::-1] for text, _ in rows],
        "label": [-1 if i == 5 else names.index(word) for i, (_, word) in enumerate(rows)], "idx": list(range(ROWS)),
    }  # fmt: skip
    path = folder / "nli.jsonl"
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table, datasets.Features(features)).to_json(path)
    return path


def write_log(folder: Path) -> Path:
    """``logging`` with the usual format, and a traceback."""
    path = folder / "service.log"
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.Logger("shop.orders")
    log.addHandler(handler)
    levels = dict(zip(tiny.COLOURS, (logging.INFO, logging.WARNING, logging.ERROR), strict=True))
    for number, text, word in sentence_rows(tiny.COLOURS, "north", 2):
        log.log(levels[word], "%s %s", text, number)
    try:
        log.error("%s", tiny.COLOURS[3])
    except IndexError:
        log.exception("no such colour")
    handler.close()
    return path


def label_studio_task(number: int, text: str, choice: str | None) -> dict[str, Any]:
    """A task as Label Studio's JSON export has it; without a choice, a person passed over it."""
    result = {"value": {"choices": [choice]}, "id": f"{random.Random(number).getrandbits(40):010x}",
              "from_name": "sentiment", "to_name": "text", "type": "choices", "origin": "manual"}  # fmt: skip
    moment = "2024-05-02T08:11:27.104Z"
    annotation = {
        "id": number, "completed_by": 1, "result": [result] if choice else [], "was_cancelled": choice is None,
        "ground_truth": False, "created_at": moment, "updated_at": moment, "draft_created_at": None,
        "lead_time": 3.2 + number / 10, "prediction": {}, "result_count": int(choice is not None),
        "unique_id": f"{random.Random(-number).getrandbits(120):032x}", "import_id": None, "last_action": None,
        "task": number, "project": 1, "updated_by": 1, "parent_prediction": None, "parent_annotation": None,
        "last_created_by": None,
    }  # fmt: skip
    return {
        "id": number, "annotations": [annotation], "file_upload": "0f5a-posts.csv", "drafts": [], "predictions": [],
        "data": {"text": text}, "meta": {}, "created_at": moment, "updated_at": moment, "allow_skip": True,
        "inner_id": number, "total_annotations": int(choice is not None),
        "cancelled_annotations": int(choice is None), "total_predictions": 0, "comment_count": 0,
        "unresolved_comment_count": 0, "last_comment_updated_at": None, "project": 1, "updated_by": 1,
        "comment_authors": [],
    }  # fmt: skip


def write_label_tool(folder: Path) -> Path:
    """Label Studio's JSON export of a project with one choice for each text: an array on one line."""
    rows = sentence_rows(tiny.ANIMALS, "north", 3)
    tasks = [label_studio_task(n + 1, text, None if n % 20 == 3 else word.title()) for n, text, word in rows]
    path = folder / "project-1-at-2024-05-02-08-12-0f5a1b2c.json"
    path.write_text(json.dumps(tasks))
    return path
