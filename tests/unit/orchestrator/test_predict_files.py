"""``ttmoe predict`` without a model: options, columns, readers, the scan, writers, standard input, workers on Ray."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from orchestrator.predict import files
from orchestrator.predict import texts as texts_module
from orchestrator.predict.answer_folder import AnswerFolder, check_folder, finish_ended_runs
from orchestrator.predict.input_columns import ANSWER, InputColumns
from orchestrator.predict.leftovers import run_name
from orchestrator.predict.ray_data import predict_on_ray
from orchestrator.predict.readers import find_files, read_chunk
from orchestrator.predict.request import PredictRequest
from orchestrator.predict.scan import CHUNK_ROWS, scan_files
from orchestrator.predict.sizing import PoolSize, choose_pool_size
from orchestrator.predict.writers import check_output, open_output, with_answer
from ttmoe.conversation import Conversation, single_turn
from ttmoe.encoding import Choice
from ttmoe.errors import InfeasibleError, InputError, WorkFailedError
from ttmoe.prediction import Prediction


class Echo:
    """A model whose label is the text of its input; ``asked`` lists the inputs of each call."""

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []

    def predict(self, inputs: Sequence[Any], batch_size: int) -> list[Prediction]:
        self.asked.append(list(inputs))
        return [Prediction("echo", str(item), 0.5, 1.0, {"a": 0.75, "b": 0.25}) for item in inputs]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    model = Echo()

    class Router:
        def load(self, device: str) -> Echo:
            return model

    for module in (files, texts_module):
        monkeypatch.setattr(module, "open_router", lambda *_: Router())
    return model


def error_of(function: Any, *arguments: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return caught.value


SAID = {"role": "user", "content": "hello"}


class TestColumns:
    @pytest.mark.parametrize(
        ("row", "asked"),
        [
            ({"text": " one "}, "one"),
            ({"text": 7.0, "second": None, "choices": None}, "7"),
            ({"text": "a", "second": "b", "choices": []}, ("a", "b")),
            ({"text": "a", "second": "", "choices": ["x", 2]}, Choice("a", ("x", "2"))),
            ({"text": "a", "choices": '["x", "y"]'}, Choice("a", ("x", "y"))),
            ({"text": "a", "choices": ""}, "a"),
            ({"text": "a", "choices": "null"}, "a"),
            ({"text": "a", "messages": [SAID]}, "a"),
            ({"messages": [SAID]}, single_turn("hello")),
            ({"text": None, "messages": json.dumps([SAID])}, single_turn("hello")),
        ],
    )
    def test_the_default_columns_make_every_form(self, row: dict[str, Any], asked: Any) -> None:
        assert InputColumns().input_of(row, "f:1") == asked

    def test_named_columns_and_a_column_for_each_option(self) -> None:
        columns = InputColumns("question", "sentence", ("a", "b"))
        assert columns.input_of({"question": "q", "sentence": "s", "text": "no"}, "") == ("q", "s")
        assert columns.input_of({"question": "q", "a": "x", "b": "y"}, "") == Choice("q", ("x", "y"))
        assert columns.input_of({"question": "q", "a": "", "b": None}, "") == "q"

    @pytest.mark.parametrize(
        ("row", "what", "fix"),
        [
            ({"txt": "a"}, "no column 'text'", "did you mean 'txt'"),
            ({"text": " "}, "'text' is empty", "fill it"),
            ({"text": ["a"]}, "nested, not a text", "text.0"),
            ({"text": "a", "second": "b", "choices": ["x"]}, "a second text and options", "empty"),
            ({"text": "a", "choices": "x, y"}, "not a list", '["one", "two"]'),
            ({"messages": "hello"}, "'messages': it is not a list of messages", '{"role": "user"'),
            ({"messages": [SAID | {"role": "tool"}]}, "the role 'tool'", '{"role": "user"'),
            ({"messages": []}, "no column 'text'", "available: messages"),
            ({"text": "a", "choices": {"x": 1}}, "not a list", '["one", "two"]'),
            ({"text": "a", "choices": 3}, "not a list", '["one", "two"]'),
            ({"text": "a", "choices": '"x"'}, "not a list", '["one", "two"]'),
            ({"text": "a", "choices": ["x", " "]}, "an option is empty", "fill it"),
        ],
    )
    def test_a_row_that_cannot_be_answered_is_an_error(self, row: dict[str, Any], what: str, fix: str) -> None:
        error = error_of(InputColumns().input_of, row, "f:3")
        assert (what in error.what, fix in error.fix, error.where) == (True, True, "f:3"), error


JSONL = (
    '\ufeff{"text": "007", "n": 1, "d": "2024-01-01"}\n\n{"text": "a\u2028b", "n": 2.5}\r\n{"text": "c", "l": ["x"]}'
)
CSV = 'text,n\r\n"one\nline, two",1\n\n"he said ""no""",2\n'
TSV = 'text\tn\nsaid "no\t1\nb\t2\n'


class TestAnswers:
    def test_probabilities_have_four_decimals_in_every_output(self) -> None:
        scores = {"seconds": 2 / 3, "spec": 1 / 3 - 1e-9, "c": 1e-9}
        answer = with_answer({"text": "a", "n": 0.123456}, Prediction("t", "seconds", 2 / 3, 0.99996, scores))
        assert answer == {
            "text": "a", "n": 0.123456, "task": "t", "label": "seconds", "confidence": 0.6667, "routing": 1.0,
            "scores": {"seconds": 0.6667, "spec": 0.3333, "c": 0.0},
        }  # fmt: skip

    def test_the_columns_are_those_that_names_are_kept_free_for(self) -> None:
        assert tuple(with_answer({}, Prediction("t", "x", 0.5, 1.0))) == ANSWER


class TestRows:
    def write(self, folder: Path, name: str, text: str) -> Path:
        path = folder / name
        path.write_bytes(text.encode())
        return path

    def rows(self, path: Path) -> list[Any]:
        return [
            (read.row, read.where.removeprefix(str(path)))
            for file in find_files(str(path))
            for read in read_chunk(file)
        ]

    def test_texts_are_unchanged_and_lines_are_counted(self, tmp_path: Path) -> None:
        assert self.rows(self.write(tmp_path, "a.jsonl", JSONL)) == [
            ({"text": "007", "n": 1, "d": "2024-01-01"}, ":1"), ({"text": "a\u2028b", "n": 2.5}, ":3"),
            ({"text": "c", "l": ["x"]}, ":4")]  # fmt: skip
        assert self.rows(self.write(tmp_path, "a.csv", CSV)) == [
            ({"text": "one\nline, two", "n": "1"}, ":2"), ({"text": 'he said "no"', "n": "2"}, ":5")]  # fmt: skip
        assert self.rows(self.write(tmp_path, "a.tsv", TSV)) == [
            ({"text": 'said "no', "n": "1"}, ":2"), ({"text": "b", "n": "2"}, ":3")]  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "text", "line", "what"),
        [
            ("a.jsonl", '{"text": "a"}\n{"text": \n', 2, "not JSON"),
            ("a.jsonl", '{"text": "a"}\n[1]\n', 2, "JSON object"),
            ("a.jsonl", '{"text": "\\ud800"}\n', 1, "not JSON"),
            ("a.jsonl", '{"text": "a"}\n\n{"text": ""}\n', 3, "empty"),
            ("a.csv", "text,n\na,1\nb\n", 3, "1 cells, the header 2"),
            ("a.csv", 'text,n\na,1\n"b,1\n', 3, "cannot be read"),
            ("a.csv", "text,text\na,1\n", 1, "repeated"),
        ],
    )
    def test_a_bad_row_is_named_by_its_line(self, tmp_path: Path, name: str, text: str, line: int, what: str) -> None:
        path = self.write(tmp_path, name, text)
        error = error_of(scan_files, find_files(str(path)), InputColumns())
        assert (error.where, what in error.what) == (f"{path}:{line}", True), error

    def test_bytes_and_files_of_unknown_format(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
        assert error_of(scan_files, find_files(str(path)), InputColumns()).where == f"{path}:2"
        (tmp_path / "a.parquet").write_bytes(b"text")
        assert "not a Parquet" in error_of(scan_files, find_files(str(tmp_path / "a.parquet")), InputColumns()).what
        assert "no such file" in error_of(find_files, str(tmp_path / "none.csv")).what
        assert "several formats: jsonl, parquet" in error_of(find_files, str(tmp_path / "*")).what
        (tmp_path / "a.txt").write_text("a")
        assert "unknown file format" in error_of(find_files, str(tmp_path / "a.txt")).what

    def test_missing_columns(self, tmp_path: Path) -> None:
        for name in ("a.jsonl", "a.csv"):
            path = self.write(tmp_path, name, JSONL if name == "a.jsonl" else CSV)
            error = error_of(scan_files, find_files(str(path)), InputColumns(second="third"))
            assert "no column 'third'" in error.what
        pyarrow.parquet.write_table(pyarrow.table({"txt": ["a"]}), tmp_path / "a.parquet")
        error = error_of(scan_files, find_files(str(tmp_path / "a.parquet")), InputColumns())
        assert "did you mean 'txt'" in error.fix
        assert (
            "no rows"
            in error_of(scan_files, find_files(str(self.write(tmp_path, "b.csv", "text\n"))), InputColumns()).what
        )


def three_files(folder: Path, form: str) -> list[dict[str, Any]]:
    """Texts of one and of two lines, in three files, the first larger than a chunk."""
    rows: list[dict[str, Any]] = []
    for number, count in enumerate((2 * CHUNK_ROWS + 40, 1, CHUNK_ROWS)):
        some = [{"text": f"{number}.{i}" + ("\nü" if i % 3 else ""), "id": i} for i in range(count)]
        rows += some
        path = folder / f"{number}.{form}"
        if form == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), path, row_group_size=100)
        elif form == "jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some))
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["text", "id"])
                writer.writeheader()
                writer.writerows(some)
    return rows if form != "csv" else [row | {"id": str(row["id"])} for row in rows]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("max_rows", [1, 2 * CHUNK_ROWS, 10**6])
def test_chunks_contain_all_rows_once_and_in_order(tmp_path: Path, form: str, max_rows: int) -> None:
    rows = three_files(tmp_path, form)
    scan = scan_files(find_files(str(tmp_path / f"*.{form}")), InputColumns())
    assert scan.rows == len(rows)
    chunks = scan.merge_chunks(max_rows)
    assert len(chunks) == {1: 5, 2 * CHUNK_ROWS: 4, 10**6: 3}[max_rows]
    assert [read.row for chunk in chunks for read in read_chunk(chunk)] == rows


def test_the_types_of_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1, "f": 1, "m": 1, "l": ["x"], "b": True, "big": 2**70},
            {"text": "b", "n": None, "f": 1.5, "m": "x", "l": [], "o": {"k": 1}}]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scan = scan_files(find_files(str(tmp_path / "a.jsonl")), InputColumns())
    text = pyarrow.string()
    assert scan.types == {"text": text, "n": pyarrow.int64(), "f": pyarrow.float64(), "m": text, "b": pyarrow.bool_(),
                           "l": pyarrow.list_(text), "big": text, "o": text}  # fmt: skip
    assert scan.nested == {"m", "big", "o"}
    answers = [with_answer(row, Prediction("t", "x", 0.5, 1.0, {"x": 1.0})) for row in rows]
    with open_output(tmp_path / "out.parquet", scan) as write:
        write(answers)
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["m"] for row in written] == ["1", "x"]
    assert (written[0]["big"], written[1]["o"]) == (str(2**70), '{"k": 1}')
    assert written[0]["scores"] == [("x", 1.0)]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_column_without_values_is_written(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a", "note": None}, {"text": "b", "note": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scan = scan_files(find_files(str(tmp_path / "a.jsonl")), InputColumns())
    assert scan.types == {"text": pyarrow.string(), "note": pyarrow.string()}
    with open_output(tmp_path / name, scan) as write:
        write([with_answer(row, Prediction("t", "x", 0.5, 1.0, {"x": 1.0})) for row in rows])
    written = scan_files(find_files(str(tmp_path / name)), InputColumns())
    assert list(written.types)[:3] == ["text", "note", "task"]


class TestFiles:
    def run(self, folder: Path, out: Path | None, pattern: str = "", **more: Any) -> str:
        printed = io.StringIO()
        request = PredictRequest(file=pattern or str(folder / "in.jsonl"), out=out, batch_size=8, **more)
        files.predict_files(request, Console(file=printed, width=40))
        return printed.getvalue()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        rows = [{"text": "a", "label": "x", "n": 1}, {"text": "b", "choices": ["x", "y"], "n": float("nan")}]
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    def test_each_format_holds_the_columns_and_the_answers(self, folder: Path, echo: Echo, capsys: Any) -> None:
        answer = {"task": "echo", "label": "a", "confidence": 0.5, "routing": 1.0, "scores": {"a": 0.75, "b": 0.25}}
        messages = self.run(folder, None)
        printed = capsys.readouterr().out.splitlines()
        assert json.loads(printed[0]) == {"text": "a", "input_label": "x", "n": 1, **answer}
        assert json.loads(printed[1])["n"] is None
        assert "2 rows in" in messages
        assert "wrote" in self.run(folder, folder / "out.jsonl")
        assert (folder / "out.jsonl").read_text().splitlines() == printed
        self.run(folder, folder / "out.csv")
        with (folder / "out.csv").open(newline="") as file:
            first, second = csv.DictReader(file)
        assert list(first) == ["text", "input_label", "n", "choices", *answer]
        assert (first["input_label"], json.loads(first["scores"])) == ("x", answer["scores"])
        assert (json.loads(second["choices"]), second["label"]) == (["x", "y"], "Choice(text='b', options=('x', 'y'))")
        self.run(folder, folder / "out.parquet")
        table = pyarrow.parquet.read_table(folder / "out.parquet")
        assert table.column_names == list(first)
        assert table.column("choices").to_pylist() == [None, ["x", "y"]]
        assert dict(table.column("scores").to_pylist()[0]) == answer["scores"]

    @pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
    def test_conversations(self, tmp_path: Path, echo: Echo, form: str) -> None:
        rows = [{"id": "a", "messages": [SAID]}, {"id": "b", "messages": [SAID, SAID | {"role": "assistant"}]}]
        path = tmp_path / f"in.{form}"
        if form == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif form == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with path.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerows([["id", "messages"], *([row["id"], json.dumps(row["messages"])] for row in rows)])
        for out in ("jsonl", "csv", "parquet"):
            self.run(tmp_path, tmp_path / f"out.{out}", str(path))
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        kept = [json.loads(row["messages"]) if form == "csv" else row["messages"] for row in written]
        assert kept == [row["messages"] for row in rows]
        assert echo.asked[0] == [Conversation.of(row["messages"]) for row in rows]

    @pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
    def test_many_rows_are_answered_in_chunks_and_in_order(
        self, tmp_path: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        rows = three_files(tmp_path, form)
        monkeypatch.setattr(files, "ROWS_IN_MEMORY", CHUNK_ROWS)
        self.run(tmp_path, tmp_path / "out.jsonl", str(tmp_path / f"*.{form}"))
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [(row["text"], row["id"]) for row in written] == [(row["text"], row["id"]) for row in rows]
        assert [row["label"] for row in written] == [row["text"] for row in rows]
        assert max(map(len, echo.asked)) == CHUNK_ROWS

    @pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
    def test_a_failure_keeps_the_existing_file(self, folder: Path, echo: Echo, monkeypatch: Any, name: str) -> None:
        (folder / name).write_text("before")
        there = set(folder.iterdir())
        monkeypatch.setattr(Echo, "predict", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.run(folder, folder / name, force=True)
        assert (set(folder.iterdir()), (folder / name).read_text()) == (there, "before")

    def test_answers_that_cannot_replace_the_file_are_kept(self, folder: Path, echo: Echo, monkeypatch: Any) -> None:
        def busy(path: Path, target: Path) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        out = folder / "out.jsonl"  # such as a file that is a mount point
        out.write_text("before")
        monkeypatch.setattr(Path, "replace", busy)
        with pytest.raises(WorkFailedError, match="cannot be replaced: Device or resource busy") as caught:
            self.run(folder, out, force=True)
        (part,) = folder.glob("out-*.jsonl")  # a later command does not take it for a leftover
        assert str(part) in caught.value.fix
        assert (out.read_text(), len(part.read_text().splitlines())) == ("before", 2)

    def test_a_full_disk_is_named_by_the_output(self, folder: Path, echo: Echo, monkeypatch: Any) -> None:
        """The error of a write names no file."""
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(full))
        for write in (lambda: self.run(folder, folder / "out.csv"), lambda: AnswerFolder(folder, "r").write(0, b"")):
            full.filename = None
            with pytest.raises(OSError, match="No space left") as caught:
                write()
            assert caught.value.filename in {str(folder / "out.csv"), str(folder / ".r-part-000000.parquet")}
        assert [path.name for path in folder.iterdir()] == ["in.jsonl"]

    def test_errors_are_raised_before_the_model_is_called(self, folder: Path, echo: Echo) -> None:
        for out, what in (
            ("in.jsonl", "replace an input file"),
            ("none/out.csv", "not writable"),
            ("out.txt", "unknown file format"),
        ):
            assert what in error_of(self.run, folder, folder / out).what
        (folder / "out.csv").write_text("mine")
        assert "already exists" in error_of(self.run, folder, folder / "out.csv").what
        with (folder / "in.jsonl").open("a") as file:
            file.write('{"text": ""}\n')
        assert error_of(self.run, folder, None).where == f"{folder}/in.jsonl:3"
        assert echo.asked == []

    def test_columns_whose_output_names_exist(self, folder: Path, echo: Echo) -> None:
        (folder / "in.jsonl").write_text('{"text": "a", "label": 1, "input_label": 2}\n')
        assert "'label' and 'input_label'" in error_of(self.run, folder, None).what

    def test_a_file_that_shrank_after_the_scan(self, folder: Path, echo: Echo) -> None:
        scan = scan_files(find_files(str(folder / "in.jsonl")), InputColumns())
        (folder / "in.jsonl").write_text('{"text": "a"}\n')
        (chunk,) = scan.merge_chunks(9)
        assert "changed" in error_of(files.answer_chunk, echo, chunk, InputColumns(), 8).what


class TestStream:
    def run(self, lines: str, capsys: Any, **more: Any) -> list[dict[str, Any]]:
        stdin = more.pop("stdin", io.TextIOWrapper)(io.BytesIO(lines.encode()))
        try:
            texts_module.predict_stream(PredictRequest(batch_size=2, **more), stdin, Console(stderr=True))
        finally:
            self.out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return self.out

    def test_texts_and_objects_in_order_and_blank_lines_passed_over(self, echo: Echo, capsys: Any) -> None:
        out = self.run('one\n\n{"text": "a", "second": "b", "id": 7}\r\n two {} \n', capsys)
        assert [(row["text"], row["label"]) for row in out] == [("one", "one"), ("a", "('a', 'b')"), ("two {}",) * 2]
        assert out[1]["id"] == 7
        assert self.run("", capsys, texts=("-",)) == []

    def test_named_columns_are_those_of_objects(self, echo: Echo, capsys: Any) -> None:
        assert [row["label"] for row in self.run('plain\n{"q": "a"}\n', capsys, text="q")] == [
            "plain",
            "a",
        ]

    def test_a_bad_line_is_named_when_those_before_it_were_answered(self, echo: Echo, capsys: Any) -> None:
        text = "one\n" * 20 + '{"text": \nlater\n'
        error = error_of(self.run, text, capsys)
        assert (error.where, len(self.out)) == ("standard input:21", 20)
        error = error_of(self.run, '{"text": " "}\n', capsys)
        assert (error.where, self.out) == ("standard input:1", [])

    def test_empty_input_is_an_error(self, echo: Echo, capsys: Any) -> None:
        class Terminal(io.TextIOWrapper):
            def isatty(self) -> bool:
                return True

        assert "--file" in error_of(self.run, "", capsys).fix
        with pytest.raises(InputError) as caught:
            self.run("one\n", capsys, stdin=Terminal)
        assert "cat texts.txt" in caught.value.fix

    def test_available_lines_are_read_without_waiting_for_more(self) -> None:
        """Lines are written only after the previous ones were returned, so waiting for more would block."""
        ends = os.pipe()
        got: list[list[bytes]] = []
        with os.fdopen(ends[0]) as reading, os.fdopen(ends[1], "wb", buffering=0) as writing:
            hanging = threading.Timer(20, writing.close)
            hanging.start()
            writing.write(b"one\ntwo\nthr")
            for bundle in texts_module.read_line_batches(reading, 8):
                got.append(bundle)
                if len(got) == 1:
                    writing.write(b"ee\n")
                elif len(got) == 2:
                    writing.write(b"4\n" * 9 + b"end")
                    writing.close()
            hanging.cancel()
        assert got[:2] == [[b"one", b"two"], [b"three"]]
        assert [line for bundle in got[2:] for line in bundle] == [b"4"] * 9 + [b"end"]
        assert max(map(len, got)) <= 8


class TestRequest:
    @pytest.mark.parametrize(
        ("request_", "what"),
        [
            (PredictRequest(("a",), file="f"), "both texts and --file"),
            (PredictRequest(out=Path("o")), "--out"),
            (PredictRequest(("a",), on_ray=True), "--ray"),
            (PredictRequest(file="f", workers=2), "--workers"),
            (PredictRequest(file="f", gpus=0.0), "--gpus-per-worker"),
            (PredictRequest(("a",), choices=("c",)), "--choices requires rows"),
            (PredictRequest(file="f", on_ray=True), "an output folder"),
        ],
    )
    def test_options_that_do_not_go_together(self, request_: PredictRequest, what: str) -> None:
        assert what in error_of(request_.check).what

    def test_options_that_go_together(self) -> None:
        for request in (
            PredictRequest(("a",)),
            PredictRequest(("-",), text="t"),
            PredictRequest(text="t"),
            PredictRequest(file="f", out=Path("o")),
            PredictRequest(file="f", out=Path("o"), on_ray=True, workers=2, gpus=0.5),
        ):
            request.check()


class TestPoolSize:
    def test_as_many_workers_as_fit_and_at_most_one_per_chunk(self) -> None:
        two, eight, gpu = {"CPU": 2.0}, {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}
        assert choose_pool_size([two], 9, "auto", None, None) == PoolSize(1, 2, 0)
        assert choose_pool_size([eight, eight, two], 9, "auto", None, None) == PoolSize(4, 4, 0)
        assert choose_pool_size([eight, gpu], 9, "auto", None, None) == PoolSize(2, 1, 1)
        assert choose_pool_size([eight, gpu], 9, "auto", None, 0.5) == PoolSize(4, 1, 0.5)
        assert choose_pool_size([eight, gpu], 9, "cpu", None, None) == PoolSize(6, 4, 0)
        assert choose_pool_size([eight, gpu], 3, "cpu", 5, None) == PoolSize(3, 4, 0)
        assert choose_pool_size([two], 9, "auto", 2, None) == PoolSize(2, 1, 0)
        assert choose_pool_size([gpu], 9, "auto", None, 0).device == "cpu"

    def test_a_worker_that_fits_on_no_node(self) -> None:
        for device, gpus in (("cuda", None), ("auto", 1.0), ("auto", 3.0)):
            with pytest.raises(InfeasibleError, match="fits on no node"):
                choose_pool_size([{"CPU": 8.0}], 9, device, None, gpus)
        assert "needs no GPU" in error_of(choose_pool_size, [{"CPU": 8.0, "GPU": 1.0}], 9, "cpu", None, 1.0).what


def test_a_folder_is_replaced_only_with_force_and_if_it_contains_only_answers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_folder(out, [], False)
    out.mkdir()
    check_folder(out, [], False)
    (out / "lost+found").mkdir()  # the root of a volume
    (out / ".1-ab-part-000000.parquet").write_text("of a run that was killed")
    check_folder(out, [], False)
    (out / "part-000003.parquet").write_text("")
    assert "not empty" in error_of(check_folder, out, [], False).what
    check_folder(out, [], True)
    (out / "thesis.tex").write_text("")
    assert "other files" in error_of(check_folder, out, [], True).what
    assert "is a file" in error_of(check_folder, out / "thesis.tex", [], True).what
    assert "does not exist" in error_of(check_folder, tmp_path / "a" / "b", [], False).what


@pytest.mark.parametrize("out", ["texts", "to-texts", "links"])
def test_a_folder_that_contains_an_input_file_is_never_replaced(tmp_path: Path, out: str) -> None:
    """Spark's files have the names of answers. Neither they nor links to them are lost."""
    for name in ("texts", "links"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "part-00000-c1-c000.parquet").write_text("")
    (tmp_path / "links" / "part-0.parquet").symlink_to(tmp_path / "texts" / "part-00000-c1-c000.parquet")
    (tmp_path / "to-texts").symlink_to("texts")
    inputs = find_files(str(tmp_path / "texts" / "*.parquet"))
    for force in (False, True):
        error = error_of(check_folder, tmp_path / out, inputs, force)
        assert "would replace an input file" in error.what
        assert "--force" not in error.fix
    check_folder(tmp_path / "new", inputs, False)


@pytest.mark.parametrize("target", ["nothing", "out"])
def test_a_link_to_nothing_is_no_folder(tmp_path: Path, target: str) -> None:
    (tmp_path / "out").symlink_to(target)
    assert "a link to nothing" in error_of(check_folder, tmp_path / "out", [], True).what


def test_a_folder_is_checked_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.predict.ray_data.ray_session", None)
    monkeypatch.setattr("orchestrator.predict.ray_data.open_router", None)
    (tmp_path / "part-0.parquet").write_text("")
    (tmp_path / "in.csv").write_text("text\na\n")
    (tmp_path / "nowhere").symlink_to("nothing")
    for file, out in (("*.parquet", "."), ("in.csv", "nowhere")):
        request = PredictRequest(file=str(tmp_path / file), out=tmp_path / out, on_ray=True, force=True)
        assert "choose another --out" in error_of(predict_on_ray, request, Console()).fix


class TestAnswerFolder:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        """A folder with the answers of an earlier run."""
        for number in range(2):
            (tmp_path / f"part-{number:06}.parquet").write_text(f"old {number}")
        (tmp_path / "_SUCCESS").write_text("")
        return tmp_path

    def written(self, out: Path, files: int) -> AnswerFolder:
        folder = AnswerFolder(out)
        for number in range(files):
            folder.write(number, f"new {number}".encode())
        return folder

    def content(self, out: Path) -> list[str]:
        return [path.read_text() for path in sorted(out.glob("[!.]*"))]

    @pytest.mark.parametrize("files", [1, 3])
    def test_new_files_replace_those_of_before(self, out: Path, files: int) -> None:
        folder = self.written(out, files)
        assert self.content(out) == ["", "old 0", "old 1"]
        folder.publish(files)
        folder.sweep(False)
        names = [f"part-{number:06}.parquet" for number in range(files)]
        assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", *names]
        assert self.content(out) == ["", *(f"new {number}" for number in range(files))]

    @pytest.mark.parametrize("failing", range(6))
    @pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt("broken")])
    def test_a_failure_at_any_change_leaves_the_answers_of_before(
        self, out: Path, monkeypatch: Any, failing: int, error: BaseException
    ) -> None:
        """The changes: the mark, two earlier files, two new ones, the mark. Ctrl-C comes after a rename, too."""
        before, folder, changes, rename = sorted(out.iterdir()), self.written(out, 2), itertools.count(), Path.rename

        def failing_once(path: Path, target: Path) -> Path:
            fails = next(changes) == failing
            if not fails or isinstance(error, KeyboardInterrupt):
                path = rename(path, target)
            if fails:
                raise error
            return path

        monkeypatch.setattr(Path, "rename", failing_once)
        with pytest.raises(type(error), match="broken"):
            folder.publish(2)
        folder.sweep()
        assert (sorted(out.iterdir()), self.content(out)) == (before, ["", "old 0", "old 1"])

    @pytest.mark.parametrize("marked", [True, False])
    @pytest.mark.parametrize(("earlier", "files"), [(2, 1), (2, 3), (0, 2)])
    def test_what_a_killed_command_left_is_finished_or_removed_by_the_next(
        self, out: Path, tmp_path_factory: Any, monkeypatch: Any, earlier: int, files: int, marked: bool
    ) -> None:
        """Killed before publication, the earlier answers stay; from its first change on, the new ones come."""
        for path in [*list(out.glob("part-*"))[earlier:], *([] if marked else [out / "_SUCCESS"])]:
            path.unlink()
        snapshots = tmp_path_factory.mktemp("snapshots")
        for name in ("rename", "replace", "unlink"):
            act = getattr(Path, name)

            def watch(path: Path, *arguments: Any, act: Any = act, **options: Any) -> Any:
                done = act(path, *arguments, **options)
                shutil.copytree(out, snapshots / f"{len(list(snapshots.iterdir())):03}")
                return done

            monkeypatch.setattr(Path, name, watch)
        old = self.content(out)
        folder = self.written(out, files)
        (out / f"..{folder.run}-part-000000.parquet.1-ab").write_text("of a worker that was killed")
        writing = len(list(snapshots.iterdir()))
        folder.publish(files)
        folder.sweep()
        monkeypatch.undo()
        finish_ended_runs(snapshots / "000")
        assert any(path.name.startswith(".") for path in (snapshots / "000").iterdir())  # its process runs
        monkeypatch.setattr("orchestrator.predict.leftovers.presence", lambda identity: "gone")
        for number, killed in enumerate(sorted(snapshots.iterdir())):
            finish_ended_runs(killed)
            expected = old if number < writing else ["", *(f"new {number}" for number in range(files))]
            assert self.content(killed) == expected, number
            assert not list(killed.glob(".*")), number
        assert number - writing >= files

    def test_a_failed_run_removes_only_what_it_made(self, out: Path) -> None:
        before = sorted(out.iterdir())
        self.written(out, 2).sweep(False)
        assert sorted(out.iterdir()) == before
        (out / "new").mkdir()
        self.written(out / "new", 1).sweep(True)
        assert sorted(out.iterdir()) == before


class TestLeftovers:
    """Files of commands of other processes and machines beside a file of answers."""

    def left(self, folder: Path, *, machine: str = "", process: int = 0, days: float = 0.0) -> Path:
        own, number, started, token = run_name().split("-")
        path = folder / f".out.jsonl.{machine or own}-{process or number}-{started}-{token}"
        path.write_text("half")
        os.utime(path, (time.time() - days * 86400,) * 2)
        return path

    def test_those_of_ended_commands_are_removed_by_the_next(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
        scan = scan_files(find_files(str(tmp_path / "a.jsonl")), InputColumns())
        gone = self.left(tmp_path, process=2**22 + 1)  # above the highest id of a process
        old = self.left(tmp_path, machine="0123456789ab", days=8)
        kept = [self.left(tmp_path), self.left(tmp_path, machine="0123456789ab", days=6), tmp_path / "a.jsonl"]
        with open_output(tmp_path / "out.jsonl", scan):
            assert not gone.exists()
            assert not old.exists()
        assert {*tmp_path.iterdir()} == {*kept, tmp_path / "out.jsonl"}


def test_an_output_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("")
    assert "--force" in error_of(check_output, tmp_path / "out.csv", [], False).fix
    check_output(tmp_path / "out.csv", [], True)
