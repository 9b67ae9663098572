import hashlib
import json
import os
import subprocess
import sys
import types

import pytest

from ttmoe.errors import InputError
from workers.data.sources import read_rows, source_identity
from workers.data.task import Source


def read(tmp_path, name, data, **options):
    (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_rows(Source(path=str(tmp_path / name), **options), tmp_path)


def refused(tmp_path, name, data, **options):
    with pytest.raises(InputError) as caught:
        read(tmp_path, name, data, **options)
    return caught.value


def test_csv_keeps_text_as_it_stands(tmp_path):
    data = '\ufeff,text,label\r\n0,NA,01\r\n1,"a, ""b""\r\nnull",1.0\r\n\r\n2, x ,\r\n'
    assert read(tmp_path, "a.csv", data) == [
        {"": "0", "text": "NA", "label": "01"},
        {"": "1", "text": 'a, "b"\r\nnull', "label": "1.0"},
        {"": "2", "text": " x ", "label": ""},
    ]


def test_tsv_takes_quotes_for_text_unless_told(tmp_path):
    data = 'text\tlabel\n"so called" x\t1\n"open\t0\n'
    assert [row["text"] for row in read(tmp_path, "a.tsv", data)] == ['"so called" x', '"open']
    assert read(tmp_path, "b.tsv", 't\tl\n"a\tb"\t1\n', quotes=True) == [{"t": "a\tb", "l": "1"}]


def test_the_delimiter_of_a_table_can_be_set(tmp_path):
    assert read(tmp_path, "a.csv", 't;l\n"a;b, c";1\n', delimiter=";") == [{"t": "a;b, c", "l": "1"}]
    assert read(tmp_path, "a.tsv", "t|l\na\tb|1\n", delimiter="|") == [{"t": "a\tb", "l": "1"}]
    with pytest.raises(ValueError, match="at most 1 character"):
        Source(path="a.csv", delimiter="||")


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        ("a,b\n1,2\n\n1\n", 4, "1 cells, the header 2"),
        ('a,b\n"x\ny",2\n1,2,3\n', 4, "3 cells"),
        ('a,b\n1,2\n"x,3\n4,5\n', 3, "unexpected end of data"),
        ("a,a\n1,2\n", 1, "repeated column names: a"),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path, data, line, message):
    error = refused(tmp_path, "a.csv", data)
    assert error.where == f"{tmp_path / 'a.csv'}:{line}"
    assert message in error.what


def test_long_cells_are_read(tmp_path):
    assert len(read(tmp_path, "a.csv", "a,b\n" + "x" * 200_000 + ",1\n")[0]["a"]) == 200_000


def test_jsonl_keeps_types_and_odd_line_ends(tmp_path):
    data = '{"t": "a\u2028b\x85", "n": [1, {"x": null}]}\r\n\n{"t": "01"}'
    assert read(tmp_path, "a.jsonl", data) == [{"t": "a\u2028b\x85", "n": [1, {"x": None}]}, {"t": "01"}]


@pytest.mark.parametrize(
    ("line", "message"), [('{"a": 1', "not JSON"), ("[1]", "a JSON object"), ('{"a": "\\ud83d"}', "surrogates")]
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    error = refused(tmp_path, "a.jsonl", '{"a": 1}\n\n' + line + "\n")
    assert error.where.endswith("a.jsonl:3")
    assert message in error.what


def test_patterns_read_matching_lines(tmp_path):
    pattern = r"^(?P<label>[A-Z]+):\S+ (?P<text>.+)$"
    data = "# head\r\nLOC:city Où ?\r\nNUM:date When ?".encode("latin-1")
    rows = read(tmp_path, "a.txt", data, pattern=pattern, encoding="latin-1")
    assert rows == [{"label": "LOC", "text": "Où ?"}, {"label": "NUM", "text": "When ?"}]
    error = refused(tmp_path, "b.txt", "\nnothing here\n", pattern=pattern)
    assert error.where.endswith("b.txt:2")
    assert "'nothing here'" in error.what


def test_another_encoding_names_line_and_bytes(tmp_path):
    error = refused(tmp_path, "a.csv", "a,b\n1,2\né,3\n".encode("latin-1"))
    assert error.where.endswith("a.csv:3")
    assert r"b'\xe9" in error.what
    assert "latin-1" in error.fix


def test_parquet_keeps_types(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "NA", "label": 1, "choices": ["a", "b"]}, {"text": "01", "label": None, "choices": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_rows(Source(path=str(tmp_path / "a.parquet")), tmp_path) == rows
    assert "not a Parquet file" in refused(tmp_path, "b.parquet", "text").what


def test_the_file_must_exist_and_have_a_known_format(tmp_path):
    with pytest.raises(InputError, match="the file does not exist"):
        read_rows(Source(path=str(tmp_path / "gone.csv")), tmp_path)
    assert "'.dat' has no known format" in refused(tmp_path, "a.dat", "a,b\n1,2\n").what
    assert read(tmp_path, "a.dat", "a,b\n1,2\n", format="csv") == [{"a": "1", "b": "2"}]


def test_a_digest_is_checked_and_identifies(tmp_path):
    digest = hashlib.sha256(b"a\n1\n").hexdigest()
    error = refused(tmp_path, "a.csv", "a\n1\n", sha256="0" * 64)
    assert digest in error.what
    assert "0" * 64 in error.what
    assert read(tmp_path, "a.csv", "a\n1\n", sha256=digest) == [{"a": "1"}]
    assert source_identity(Source(path=str(tmp_path / "a.csv")), tmp_path) == digest


def test_a_hub_source_is_asked_for_exactly(tmp_path, monkeypatch):
    asked = []
    fake = types.ModuleType("datasets")
    fake.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)

    def load_dataset(*args, **keywords):
        asked.append((args, keywords))
        if len(asked) == 2:
            raise ConnectionError("no way")
        return types.SimpleNamespace(to_list=lambda: [{"text": "a"}])

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    source = Source(hub="glue", name="rte", split="train", revision="abc")
    assert read_rows(source, tmp_path) == [{"text": "a"}]
    assert asked == [(("glue", "rte"), {"split": "train", "revision": "abc"})]
    with pytest.raises(InputError, match="cannot be loaded: no way") as caught:
        read_rows(source, tmp_path)
    assert caught.value.where == "glue"
    assert source_identity(source, tmp_path) == "abc"


def test_the_real_library_reads_a_hub_source(tmp_path):
    # A folder stands in for a hub data set, in another process: the library reads its settings on import.
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": "NA", "label": 1}))
    code = (
        "import sys; from pathlib import Path; from workers.data.sources import read_rows\n"
        "from workers.data.task import Source; from ttmoe.errors import InputError\n"
        "for split in ('train', 'tests'):\n"
        "  try: print(read_rows(Source(hub=sys.argv[1], split=split, revision='main'), Path('x')))\n"
        "  except InputError as error: print(error.what)"
    )
    settings = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    output = subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout
    first, second = output.strip().split("\n")
    assert first == "[{'text': 'NA', 'label': 1}]"
    assert second.startswith("the data set cannot be loaded: Unknown split")
