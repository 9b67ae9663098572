"""One value in several spellings: what meets, and what stays apart."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from ttmoe.errors import InputError
from workers.data.cells import NotTextError, cell_text, column_type, joint_type, spelling
from workers.data.prepared import prepare_task
from workers.data.sources import read_rows
from workers.data.task import Source, Task


def prepared(path, label=None, where=(), names=None, **source):
    """The prepared task of a file with the columns text and label."""
    task = Task.model_validate({
        "kind": "text", "source": {"path": str(path), **source}, "columns": {"text": "text"},
        "label": {"column": label or "label", **({"names": names} if names else {})}, "where": list(where),
    })  # fmt: skip
    return prepare_task("t", task, path.parent / "cache")


def table(path, labels, count=60):
    """A CSV with these labels in turn."""
    rows = [f"text number {i},{labels[i % len(labels)]}" for i in range(count)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (" 1 ", "1"), (True, "true"), (None, ""), (float("nan"), ""), (0.5, "0.5"),
     (b"caf\xc3\xa9", "café"), (date(2024, 1, 2), "2024-01-02"),
     (datetime(2024, 1, 2, 3), "2024-01-02 03:00:00"), 
     (Decimal("1.50"), "1.50"),
     (2**60 + 1, str(2**60 + 1))],
)  # fmt: skip
def test_a_cell_has_a_text(value, text):
    assert cell_text(value) == text


@pytest.mark.parametrize("value", [["one"], {"v": 1}, (1,), b"\xff\xfe", object(), {1, 2}, 1j])
def test_what_is_no_text_is_never_printed_into_one(value):
    with pytest.raises(NotTextError):
        cell_text(value)


@pytest.mark.parametrize(
    ("values", "typed", "kind"),
    [(["True", "false", ""], False, "boolean"), (["TRUE", "maybe"], False, "text"),
     (["1", "1.0", "-0.00", "1e3", ".5"], False, "number"),
     (["01", "1"], False, "text"), (["1", "nan"], False, "text"), (["1_000"], False, "text"), ([], False, "text"),
     ([True, None, False], True, "boolean"), ([1, 2.5], True, "number"), ([1, True], True, "text"),
     (["True"], True, "text"), (["1"], True, "text"), (["True", "1"], False, "text")],
)  # fmt: skip
def test_a_column_has_a_type_only_if_all_its_cells_have_it(values, typed, kind):
    assert column_type(values, typed=typed) == kind


def test_files_have_a_type_in_common_or_none():
    assert joint_type(["number", "number"]) == "number"
    assert joint_type(["number", "text"]) == "text"
    assert joint_type([]) == "text"


def test_all_spellings_of_a_number_are_one_and_of_different_ones_are_not():
    draw = random.Random(0)
    for _ in range(500):
        number = Decimal(draw.randint(-(10**20), 10**20)).scaleb(-draw.randint(0, 6))
        zeros = "0" * draw.randint(0, 3)
        plain = f"{number:f}" + (zeros if "." in f"{number:f}" else f".{zeros}")
        exponent = f"{number:E}" if draw.random() < 0.5 else plain
        assert spelling(plain, "number") == spelling(exponent, "number")
        assert spelling(plain, "number") != spelling(f"{number + 1:f}", "number")
        assert spelling(plain, "text") == plain


@pytest.mark.parametrize(
    ("labels", "names", "found"),
    [
        (["0.0", "1.0"], {0: "no", 1: "yes"}, ("no", "yes")),
        (["0.0", "1.0"], {"0.0": "no", "1.00": "yes"}, ("no", "yes")),
        (["True", "False"], {True: "yes", False: "no"}, ("yes", "no")),
        (["True", "False"], {"True": "yes", "FALSE": "no"}, ("yes", "no")),
        (["1e2", "5"], {100: "many", 5: "few"}, ("many", "few")),
        (["01", "1"], {"01": "first", "1": "second"}, ("first", "second")),
        (["True", "maybe"], {"True": "yes", "maybe": "perhaps"}, ("yes", "perhaps")),
        (["9007199254740993", "9007199254740992"], None, ("9007199254740992", "9007199254740993")),
        (["10", "9", "1.0"], None, ("1", "9", "10")),
        (["0." + "3" * 40, "0." + "3" * 39 + "4"], None, ("0." + "3" * 40, "0." + "3" * 39 + "4")),
        ([f"{2**200}.0", f"{2**200 + 1}"], {2**200: "even", 2**200 + 1: "odd"}, ("even", "odd")),
        (["7" * 5000, "8"], None, ("8", "7" * 5000)),
        (["1e-320", "0"], {"0": "none", "1E-320": "some"}, ("none", "some")),
        (["+5", "-0"], {5: "five", 0: "zero"}, ("five", "zero")),
        (["١", "1"], {"1": "latin", "١": "arabic"}, ("latin", "arabic")),
        (["TRUE", "false "], {False: "no", "true": "yes"}, ("no", "yes")),
        (["null", "~", "no"], {"null": "a", "~": "b", "no": "c"}, ("a", "b", "c")),
        (["1_000", "1000"], {"1_000": "a", "1000": "b"}, ("a", "b")),
    ],
)
def test_labels_of_a_csv_meet_the_names_of_a_config(tmp_path, labels, names, found):
    assert prepared(table(tmp_path / "d.csv", labels), names=names).label_names == found


def test_booleans_meet_booleans_in_every_format(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"text": [f"text {i}" for i in range(60)], "label": [i % 3 == 0 for i in range(60)]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "c.json", orient="records", indent=1)
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_csv(tmp_path / "e.csv.gz", index=False)
    frame.to_csv(tmp_path / "f.tsv", sep="\t", encoding="utf-16")
    made = [prepared(path, names={True: "yes", False: "no"}) for path in sorted(tmp_path.glob("?.*"))]
    assert len(made) == 6
    assert len({each.fingerprint for each in made}) == 1


@pytest.mark.parametrize("values", [[True], ["True"], ["true"]])
def test_filters_read_what_labels_read(tmp_path, values):
    rows = [f"text {i},{'ab'[i % 2]},{i % 3 == 0}" for i in range(90)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label,ok", *rows]))
    made = prepared(tmp_path / "d.csv", where=[{"column": "ok", "in": values}])
    assert sum(made.rows.values()) == 30


def test_a_filter_that_leaves_nothing_is_named_and_counted(tmp_path):
    with pytest.raises(InputError) as caught:
        prepared(
            table(tmp_path / "d.csv", ["a", "b"]),
            where=[{"column": "label", "not_in": ["a"]}, {"column": "label", "in": ["c"]}],
        )
    assert caught.value.where == "tasks.t.where.0"
    assert caught.value.what == ("no rows are left: 60 were read, and left out: 30 by where.0 (column label), "
                                 "30 by where.1 (column label)")  # fmt: skip


def test_two_names_of_one_value_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'1' and 1.0 are one value"):
        Task.model_validate({"kind": "text", "source": {"path": "x.csv"}, "columns": {"text": "text"},
                             "label": {"column": "label", "names": {"1": "a", 1.0: "b"}}})  # fmt: skip
    with pytest.raises(InputError, match="are one value in a column of booleans"):
        prepared(table(tmp_path / "d.csv", ["True", "False"]), names={"True": "a", "true": "b", "False": "c"})


def test_an_identifier_with_a_zero_is_not_a_number(tmp_path):
    with pytest.raises(InputError) as caught:
        prepared(table(tmp_path / "d.csv", ["01", "02", "x"]), names={1: "a", 2: "b"})
    assert "write it in quotes" in caught.value.fix
    made = prepared(table(tmp_path / "e.csv", ["01", "02", "x"]), names={"01": "a", "02": "b", "x": "c"})
    assert made.label_names == ("a", "b", "c")


ROWS = [("one a", "x"), ("two b", "y"), ("three c", "x"), ("four d", "y")]
SCRIPT = """
import json, sys
from pathlib import Path
from workers.data.prepared import prepare_task
from workers.data.task import Task
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.csv")):
    task = Task.model_validate({"kind": "text", "source": {"path": str(path)}, "columns": {"text": "text"},
                                "label": {"column": "label"}})
    made = prepare_task(path.stem, task, Path(sys.argv[2]))
    found[path.stem] = [made.label_names, made.fingerprint]
print(json.dumps(found))
"""


def test_labels_have_one_order_under_every_hash_seed(tmp_path):
    for name, labels in {"ties": ["1", "01", "1.0", "nan"], "large": [str(2**60 + i) for i in range(4)],
                         "texts": list("dcba"), "numbers": ["10", "9.50", "9.5", "-1"],
                         "infinite": ["inf", "1", "-inf"], "zeros": ["0x1", "+1", "1.", "1e0", "01"],
                         "unicode": ["\u0661", "1", "\u00e9", "e\u0301", "\U0001f600"],
                         "long": ["0." + "3" * 40 + str(i) for i in (2, 4, 1)], "nans": ["nan", "NaN", "-nan", "sNaN"],
                         "cases": ["True", "TRUE", "true", "maybe"]}.items():  # fmt: skip
        table(tmp_path / f"{name}.csv", labels)
    found = set()
    for seed in range(4):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / f"cache {seed}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3],
                              env={**os.environ, "PYTHONHASHSEED": str(seed)})  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1
    orders = {name: each[0] for name, each in json.loads(found.pop()).items()}
    assert orders["long"] == ["0." + "3" * 40 + str(i) for i in (1, 2, 4)]
    assert orders["nans"] == ["-nan", "NaN", "nan", "sNaN"]
    assert orders["numbers"] == ["-1", "9.5", "10"]
    assert orders["ties"] == ["01", "1", "1.0", "nan"]
    assert orders["large"] == [str(2**60 + i) for i in range(4)]


def test_columns_that_nobody_reads_are_not_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    far = pa.array([2**50] * 60, pa.timestamp("ms"))
    columns = {"text": [f"text {i}" for i in range(60)], "label": ["ab"[i % 2] for i in range(60)], "when": far}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    assert prepared(tmp_path / "d.parquet").label_names == ("a", "b")
    with pytest.raises(InputError, match="column 'when' cannot be read"):
        prepared(tmp_path / "d.parquet", label="when")
    doubled = pa.Table.from_arrays([pa.array(columns["text"]), pa.array(columns["label"]), far, far],
                                   names=["text", "label", "when", "when"])  # fmt: skip
    pq.write_table(doubled, tmp_path / "e.parquet")
    assert prepared(tmp_path / "e.parquet").label_names == ("a", "b")
    with pytest.raises(InputError, match="repeated column names: when"):
        prepared(tmp_path / "e.parquet", label="when")


def test_options_in_a_table_are_the_text_of_a_list(tmp_path):
    cells = [json.dumps([f"one {i}", f"two {i}"]).replace('"', '""') for i in range(60)]
    rows = [f'"text {i}","{cell}",{i % 2}' for i, cell in enumerate(cells)]
    (tmp_path / "d.csv").write_text("\n".join(["text,options,label", *rows]))
    task = {"kind": "choice", "source": {"path": str(tmp_path / "d.csv")}, "label": {"column": "label"},
            "columns": {"text": "text", "choices": "options"}}  # fmt: skip
    made = prepare_task("t", Task.model_validate(task), tmp_path)
    assert made.label_names == ("0", "1")
    for cell, what in (('"x, y"', "is not a list"), ('"{""a"": 1}"', "is not a list"), ('"[[1]]"', "is nested")):
        (tmp_path / "d.csv").write_text("\n".join(["text,options,label", *rows, f"last,{cell},0"]))
        with pytest.raises(InputError, match=what):
            prepare_task("t", Task.model_validate(task), tmp_path)


@pytest.mark.parametrize("label", ["9" * 5000, "-1", "2", "1.5", "²", "0x1"])
def test_a_label_that_is_no_index_of_an_option_is_refused(tmp_path, label):
    rows = [{"text": f"text {i}", "options": ["a", "b"], "label": label} for i in range(9)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"kind": "choice", "source": {"path": str(tmp_path / "d.jsonl")}, "label": {"column": "label"},
            "columns": {"text": "text", "choices": "options"}}  # fmt: skip
    with pytest.raises(InputError, match="out of range: it has 2 options") as caught:
        prepare_task("t", Task.model_validate(task), tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("label", [["one"], {"v": 1}, [[]], {}])
def test_a_nested_label_is_refused_as_a_nested_text_is(tmp_path, label):
    rows = [{"text": f"text {i}", "label": label} for i in range(10)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="column 'label' of row 1 is nested, not a text"):
        prepared(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("returns.csv", b"text,label\rone a,x\rtwo b,y\rthree c,x\rfour d,y\r"),
        ("excel.csv", b"text,label,,\r\none a,x,,\r\ntwo b,y,,\r\nthree c,x,,\r\nfour d,y,,\r\n"),
        ("index.csv", b",text,label\n0,one a,x\n1,two b,y\n2,three c,x\n3,four d,y\n"),
        ("unicode.tsv", "text\tlabel\none a\tx\ntwo b\ty\nthree c\tx\nfour d\ty\n".encode("utf-16")),
        ("big.csv", "text,label\none a,x\ntwo b,y\nthree c,x\nfour d,y\n".encode("utf-16")),
        ("array.json", json.dumps([{"text": text, "label": label} for text, label in ROWS], indent=2).encode()),
    ],
)  # fmt: skip
def test_files_as_other_tools_write_them_are_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    rows = read_rows(Source(path=str(tmp_path / name)), tmp_path)
    assert [(row["text"], row["label"]) for row in rows] == ROWS
    assert {*rows[0]} - {""} == {"text", "label"}


def test_a_column_without_a_name_is_named_by_its_place(tmp_path):
    (tmp_path / "d.csv").write_text("text,label,,\none,x,,\ntwo,y,note,\n")
    with pytest.raises(InputError, match="column 3 has no name, and here it holds 'note'"):
        prepared(tmp_path / "d.csv")


@pytest.mark.parametrize(
    "data", [b"\x1f\x8b\x08broken", b'[{"text": "a"}, 3]', b"[1, 2", b"\x00t\x00e\x00x\x00t\x00,\xd8\x00"]
)
def test_files_cut_short_are_refused_with_their_place(tmp_path, data):
    path = tmp_path / ("d.json" if data[:1] == b"[" else "d.csv")
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        prepared(path)
    assert str(path) in caught.value.where
    assert caught.value.fix
