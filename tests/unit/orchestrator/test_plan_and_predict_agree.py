"""Files of many spellings, encodings, separators and names: `plan` and `predict` read the same of them, or refuse both.

The files are drawn at random, from seeds that are the names of the tests.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from orchestrator.predict.input_columns import InputColumns
from orchestrator.predict.readers import find_files, read_chunk
from orchestrator.predict.request import PredictRequest
from orchestrator.predict.scan import scan_files
from ttmoe.errors import InputError
from workers.data.cells import text_of
from workers.data.prepared import load_split, prepare_task
from workers.data.rows import column_value
from workers.data.sources import read_rows
from workers.data.splits import SPLIT_NAMES
from workers.data.task import Source, Task

SEEDS = range(12)
FILES = 40  # files of a seed
TEXTS = ["plain", "  pad ", "a,b", 'say "x"', "tab\there", "semi;colon", "two\nlines", "cr\rinside", "crlf\r\nin",
         "é ü 中 \U0001f600", "u\u2028v", "nb\u00a0sp", "007", "1e5", "nan", "NA", "None", "true", "x\u0085y",
         "\ufeffmark", "'", "\\n", "\x0bvt", "\x1fus", "=1+1", "[x", "{y", "-1.50", "9" * 40]  # fmt: skip
ENDS = ("\n", "\r\n", "\r")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")
FOLDERS = ["a b", "100%", "my%20x", "q?x=1&y", "h#1", "é中", "-f", "x" * 180, "a'b", "[x]*", "{a}", "new\nline", "~",
           "$HOME"]  # fmt: skip
NUMBERS = ["1", "1.0", "+1", "01", "1.", "1e0", "10", "1e1", "-0", "0.0", "0", ".5", "0.50", "5e-1", "1_000", "nan",
           "inf", "1e400", "9007199254740993", "9007199254740992", "9007199254740993.0", " 1 ", "١", "0x1",
           "0." + "3" * 30, "0." + "3" * 29 + "4", "7" * 5000]  # fmt: skip
BOOLEANS = ["True", "true", "TRUE", " true", "False", "false", "FALSE ", "yes", "no", "1", "t"]


def outcome(read: Any, *arguments: Any, **settings: Any) -> Any:
    """What a reader gives, or what it refuses and where; any other error is one of the test."""
    try:
        return read(*arguments, **settings)
    except InputError as error:
        if "no column" in error.what:  # said of a row of the data, or of the whole file
            return error.what[error.what.index("no column") :], ""
        if "empty" in error.what:  # said of all such rows, or of the first one
            return "an empty text", ""
        return error.what, error.where


def planned(path: Path, column: str = "text", **settings: Any) -> list[str]:
    """The texts as training reads them."""
    if not (rows := read_rows(Source(path=str(path), **settings), path.parent, {column})):
        raise InputError("there are no rows", where=str(path))
    texts = [text_of(column_value(row, column, ""), column, "") for row in rows]
    if not all(texts):
        raise InputError("a text is empty")
    return texts


def predicted(path: Path, column: str = "text", **settings: Any) -> list[str]:
    """The texts as prediction reads them, in chunks as they are divided for the model."""
    columns = InputColumns(column)
    scan = scan_files(find_files(str(path), **settings), columns)
    return [columns.input_of(read.row, read.where) for chunk in scan.chunks for read in read_chunk(chunk)]


def table(draw: random.Random, rows: list[tuple[str, str]], form: str, end: str) -> str:
    """A table as some program writes it: cells with quotes where they are needed, or everywhere."""
    out = io.StringIO()
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    if form == "tsv":  # without quotes: a cell can hold no tab and no line end
        out.write("".join("\t".join(" ".join(cell.split("\t")) for cell in row) + end for row in rows))
    else:
        if any("\r" in cell for row in rows for cell in row):  # Python's writer does not always see that it ends a line
            quoting = csv.QUOTE_ALL
        csv.writer(out, quoting=quoting, lineterminator=end).writerows(rows)
    return out.getvalue()


def write(draw: random.Random, folder: Path, form: str, rows: list[tuple[str, str]], encoding: str, end: str) -> Path:
    """Write rows of the columns text and other, as a program does that has these habits; perhaps compressed."""
    header = ("text", "other")
    if form in ("csv", "tsv"):
        text = table(draw, [header, *rows], form, end)
    else:
        objects = [dict(zip(header, row, strict=True)) for row in rows]
        ascii_only = draw.random() < 0.5
        if form == "jsonl":
            text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in objects) + draw.choice(["", end])
        else:
            text = json.dumps(objects, ensure_ascii=ascii_only, indent=draw.choice([None, 1, "\t"])).replace("\n", end)
    data = text.encode(encoding)
    if encoding in ("utf-16-le", "utf-16-be"):
        data = "\ufeff".encode(encoding) + data
    compress = draw.random() < 0.3
    path = folder / f"{draw.getrandbits(32):08x}.{form}{'.gz' if compress else ''}"
    path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    return path


def drawn_rows(draw: random.Random, texts: list[str]) -> list[tuple[str, str]]:
    return [(draw.choice(texts), draw.choice(texts)) for _ in range(draw.randint(1, 6))]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_texts_of_files_are_the_same(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(FILES):
        form, end = draw.choice(["csv", "tsv", "jsonl", "json"]), draw.choice(ENDS)
        lines = {"\r", "\n", "\v"} if form == "tsv" else {"\v"}
        rows = drawn_rows(draw, [text for text in TEXTS if form != "tsv" or not lines & set(text)])
        path = write(draw, tmp_path, form, rows, draw.choice(ENCODINGS), end)
        found = outcome(planned, path)
        assert outcome(predicted, path) == found, path
        if end != "\r" or not any("\n" in text for row in rows for text in row):
            expected = [text.strip() for text, _ in rows]
            if form == "tsv":
                expected = [" ".join(text.split("\t")) for text in expected]
            assert found == expected, path


@pytest.mark.parametrize("seed", SEEDS)
def test_broken_files_are_refused_with_the_same_words(tmp_path: Path, seed: int) -> None:
    """A byte is changed, bytes are lost, or lines end in several ways: one fault at most."""
    draw, refused = random.Random(f"broken {seed}"), 0
    for _ in range(FILES):
        form = draw.choice(["csv", "tsv", "jsonl", "json"])
        path = write(draw, tmp_path, form, drawn_rows(draw, TEXTS[:6] + TEXTS[12:18]), "utf-8", draw.choice(ENDS))
        data = path.read_bytes()
        if path.suffix == ".gz":
            path.write_bytes(data[: draw.randrange(11, len(data))])
        else:
            place = draw.randrange(len(data))
            kept = data[place + draw.randint(1, 3) :] if draw.random() < 0.8 else b""
            path.write_bytes(data[:place] + draw.choice([b"", b"\xff", b'"', b"\r", b"\x80", b"\0", b"{", b"]"]) + kept)
        found = outcome(planned, path)
        assert outcome(predicted, path) == found or one_decodes_first(path, found), path
        refused += isinstance(found, tuple)
    assert refused > FILES / 4


def one_decodes_first(path: Path, found: Any) -> bool:
    """Whether a file has a second fault: training decodes all of it first, and prediction line after line."""
    return isinstance(found, tuple) and "is not valid utf-8" in found[0] and isinstance(outcome(predicted, path), tuple)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac_roman", "utf-16-le", "utf-16-be", "utf-32", "utf-7"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json"])
def test_other_encodings_are_read_or_refused_alike(tmp_path: Path, form: str, encoding: str) -> None:
    rows = [("first", "b"), ("naïve café", "c")]
    objects = [dict(zip(("text", "other"), row, strict=True)) for row in rows]
    text = {"csv": "text,other\r\nfirst,b\r\nnaïve café,c\r\n", "tsv": "text\tother\nfirst\tb\nnaïve café\tc\n",
            "jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in objects),
            "json": json.dumps(objects, ensure_ascii=False, indent=1)}[form]  # fmt: skip
    path = tmp_path / f"a.{form}"
    path.write_bytes(text.encode(encoding))
    found = outcome(planned, path)
    assert outcome(predicted, path) == found
    if encoding.startswith(("utf-16", "utf-32")):
        assert found == ["first", "naïve café"]
    elif encoding != "utf-7":  # which is ASCII, and nothing tells it
        line = {"csv": 3, "tsv": 3, "jsonl": 2, "json": 7}[form]
        assert found == (f"{'ïve '.encode(encoding)!r} is not valid utf-8", f"{path}:{line}")
    for read in (planned, predicted):
        assert read(path, encoding=encoding) == ["first", "naïve café"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_every_name_are_found(tmp_path: Path, folder: str) -> None:
    draw = random.Random(folder)
    place = tmp_path / folder
    place.mkdir()
    for form in ("csv", "jsonl", "parquet"):
        path = place / f"{folder[:100]}.{form}"
        if form == "parquet":
            write_parquet(path, {"text": TEXTS})
        else:
            path = write(draw, place, form, [(text, "") for text in TEXTS], "utf-8", "\n").rename(path)
        assert predicted(path) == planned(path) == [text.strip() for text in TEXTS]


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


VALUES = {
    "bytes": [b"caf\xc3\xa9", b" x "], "other bytes": [b"\xff\xfe", b"x"], "float": [1.0, 0.25],
    "huge": [1e300, 7e22], "date": [date(2024, 2, 29), date(1, 1, 1)], "time": [datetime(2024, 1, 2, 3), None],
    "decimal": [Decimal("1.50"), Decimal("-0.00")], "list": [["a", "b"], ["c"]], "object": [{"x": "1"}, {"x": "2"}],
    "nothing": [None, None], "length": [timedelta(1), timedelta(2)], "infinite": [float("inf"), float("-inf")],
    "boolean": [True, False], "map": pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
    "far": pyarrow.array([2**50, 1], pyarrow.timestamp("ms")), "half": pyarrow.array([1, 2.5], pyarrow.float16()),
    "zone": pyarrow.array([1, 2], pyarrow.timestamp("us", "No/Where")),
    "clock": pyarrow.array([1, 2], pyarrow.time32("s")),
    "category": pyarrow.array([" a", "b"]).dictionary_encode(),
    "unsigned": pyarrow.array([2**64 - 1, 0], pyarrow.uint64()),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_of_parquet_have_the_same_texts(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, {name: VALUES[name], "text": ["one", "two"]})
    found = outcome(planned, path, name)
    assert outcome(predicted, path, name)[0] == found[0]
    if isinstance(found, list):
        assert outcome(predicted, path, name) == found
        assert not [text for text in found if text[:2] in ("b'", "['", "{'", "De", "da")]
    assert planned(path) == ["one", "two"]  # what nobody reads does not matter


def label_names(path: Path, names: dict[Any, str] | None = None) -> Any:
    label = {"column": "label", **({"names": names} if names else {})}
    task = Task.model_validate(
        {"kind": "text", "source": {"path": str(path)}, "columns": {"text": "text"}, "label": label}
    )
    made = prepare_task("t", task, path.parent / "cache")
    rows = {e.texts[0]: made.label_names[e.label] for split in SPLIT_NAMES for e in load_split(made, split)}
    return made.label_names, dict(sorted(rows.items()))


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_meet_the_same_names_in_every_form(tmp_path: Path, seed: int) -> None:
    """The labels of a table without types, whatever separates and ends its cells, and however it is encoded."""
    draw = random.Random(f"labels {seed}")
    for number in range(3):
        kind = draw.choice([NUMBERS[:-1], BOOLEANS, NUMBERS[:-1] + BOOLEANS, NUMBERS])
        labels = draw.sample(kind, draw.randint(2, 5))
        rows = [(f"text {i}", labels[i % len(labels)]) for i in range(60)]
        found = []
        for end, delimiter, encoding in [("\n", ",", "utf-8"), (draw.choice(ENDS), "\t", draw.choice(ENCODINGS[:3]))]:
            out = io.StringIO()
            csv.writer(out, delimiter=delimiter, lineterminator=end).writerows([("text", "label"), *rows])
            folder = tmp_path / f"{number} {len(found)}"
            folder.mkdir()
            path = folder / ("a.csv" if delimiter == "," else "a.tsv")
            path.write_bytes(out.getvalue().encode(encoding))
            found.append(outcome(label_names, path))
            assert outcome(predicted, path) == [text for text, _ in rows]
        assert found[0] == found[1]
        if isinstance(found[0][1], dict):  # the advice of an error, followed, and the names themselves, lead back
            assert outcome(label_names, path, {name: name for name in found[0][0]}) == found[0]


@pytest.mark.parametrize(("form", "mark"), [("csv", ";"), ("csv", "\t"), ("csv", "|"), ("tsv", ","), ("tsv", ";")])
def test_another_separator_is_named_by_both(tmp_path: Path, form: str, mark: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_text(f"text{mark}label\none{mark}x\n")
    for read in (planned, predicted):
        with pytest.raises(InputError, match="no column 'text'") as caught:
            read(path)
        assert f"its cells seem to be separated by {mark!r}" in caught.value.fix
    assert planned(path, delimiter=mark) == ["one"]


@pytest.mark.parametrize(("form", "mark"), [("csv", ";"), ("csv", "|"), ("tsv", ";"), ("tsv", ",")])
def test_another_separator_that_is_named_is_read_by_both(tmp_path: Path, form: str, mark: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_text(f"text{mark}other\none{mark}2\nthree, four{mark}x\n".replace(", ", " " if mark == "," else ", "))
    found = outcome(planned, path, delimiter=mark)
    assert found == outcome(predicted, path, delimiter=mark) == ["one", "three four" if mark == "," else "three, four"]


@pytest.mark.parametrize(("form", "quotes", "texts"), [
    ("tsv", True, ["one\ttwo", 'a "b" c', "three\nfour"]),
    ("csv", False, ['"one', 'a "b" c']),
])  # fmt: skip
def test_quotes_that_are_named_are_read_by_both(tmp_path: Path, form: str, quotes: bool, texts: list[str]) -> None:
    mark, cells = ("\t", ['"one\ttwo"', '"a ""b"" c"', '"three\nfour"']) if quotes else (",", ['"one', 'a "b" c'])
    path = tmp_path / f"a.{form}"
    path.write_text(f"text{mark}other\n" + "".join(f"{cell}{mark}x\n" for cell in cells))
    assert planned(path, quotes=quotes) == predicted(path, quotes=quotes) == texts


@pytest.mark.parametrize(("text", "hint"), [
    ('{"text": "a"},\n{"text": "b"},\n', "remove the comma"), ('[{"text": "a"},\n]', "remove the comma"),
    ('[\n// a comment\n{"text": "a"}]', "remove the comments"),
])  # fmt: skip
def test_the_advice_names_what_is_no_json(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    for read in (planned, predicted):
        with pytest.raises(InputError) as error:
            read(path)
        assert hint in error.value.fix


def test_options_of_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    with pytest.raises(InputError, match="are for CSV and TSV"):
        find_files(str(tmp_path / "a.jsonl"), delimiter=";")
    for wrong, what in [({"encoding": "utf8x"}, "unknown encoding"), ({"encoding": "hex"}, "unknown encoding"),
                        ({"delimiter": ";;"}, "one character")]:  # fmt: skip
        with pytest.raises(InputError, match=what):
            PredictRequest(file="a.csv", **wrong).check()
    with pytest.raises(InputError, match="--encoding requires --file"):
        PredictRequest(encoding="cp1252").check()


def test_dotted_columns_are_read_by_both(tmp_path: Path) -> None:
    rows = [{"data": {"text": f"t{i}"}, "turns": [{"say": "no"}, {"say": f" u{i} "}]} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    write_parquet(tmp_path / "a.parquet", {key: [row[key] for row in rows] for key in rows[0]})
    for name in ("a.json", "a.parquet"):
        for column, prefix in {"data.text": "t", "turns.-1.say": "u"}.items():
            assert predicted(tmp_path / name, column) == planned(tmp_path / name, column)
            assert predicted(tmp_path / name, column) == [f"{prefix}{i}" for i in range(3)]
        for column in ("data", "turns"):
            refused = outcome(planned, tmp_path / name, column)
            assert outcome(predicted, tmp_path / name, column)[0] == refused[0]
        for column in ("data.txt", "date.text", "turns.7.say"):
            assert outcome(predicted, tmp_path / name, column)[0] == f"no column {column!r}"
            assert outcome(planned, tmp_path / name, column)[0] == f"no column {column!r}"
