"""Commands on stores that were changed by hand, on paths and files of odd kinds, and with values that JSON lacks."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import predict_library
import pyarrow
import pyarrow.parquet
import pytest
import tiny
import yaml
from commands import Done, here

NAMES = ["my project", "100%25", "a?b=c&d", "h#1", "é中", "-dash", "it's", "a;b,c"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, fresh_store: Path) -> Path:
    """A folder with a library of scripted experts, its config and rows."""
    folder = tmp_path_factory.mktemp("hostile")
    predict_library.register_library(folder / "runs", base_folder, folder / "scratch", fresh_store)
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north", 60)
    write_config(folder, base_folder, "colours.jsonl")
    return folder


@pytest.fixture
def copied(library: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    shutil.copytree(library, tmp_path / "copied")
    return tmp_path / "copied"


def write_config(folder: Path, base_folder: Path, data: str, **more: Any) -> Path:
    config = {"library": "lib", "base": {"folder": str(base_folder), "max_length": 32},
              "tasks": {"colours": tiny.text_task(Path(data))}, **more}  # fmt: skip
    (folder / "ttmoe.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    return folder / "ttmoe.yaml"


def refused(done: Done, *parts: str) -> None:
    """The command ended with a sentence that has these parts, and with no traceback."""
    assert done.code == 2, done.err
    assert not [part for part in parts if part not in done.err], done.err
    assert "Traceback" not in done.out + done.err
    assert "traceback is in" not in done.err


def execute(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "runs" / "mlflow.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


READING = [("plan", "ttmoe.yaml"), ("predict", "red"), ("experts", "ls"), ("status",)]


def damage_lock(folder: Path) -> None:
    for path in (folder / "runs" / "mlartifacts").rglob("lock.json"):
        path.write_text("{")
    execute(folder, "delete from model_version_tags where key = 'ttmoe.lock'")


def put_folder(folder: Path) -> None:
    for path in (folder / "runs").glob("mlflow.db*"):
        path.unlink()
    (folder / "runs" / "mlflow.db").mkdir()


CHANGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "tags of versions deleted": (lambda folder: execute(folder, "delete from model_version_tags"), ()),
    "a spec hash deleted": (lambda f: execute(f, "delete from model_version_tags where key = 'ttmoe.spec_hash'"), ()),
    "aliases deleted": (lambda folder: execute(folder, "delete from registered_model_aliases"), ("no router",)),
    "runs deleted": (lambda folder: execute(folder, "update runs set lifecycle_stage = 'deleted'"), ("no run",)),
    "a damaged lock": (damage_lock, ("lib.router version 1", "lock.json is damaged")),
    "a folder in place of the database": (put_folder, ("mlflow.db is a folder, not an MLflow store",)),
    "another file in place of the database": (
        lambda folder: (folder / "runs" / "mlflow.db").write_bytes(b"PK" * 999) and None,
        ("is not an MLflow store",),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_changed_by_hand_is_read_or_refused_with_a_sentence(copied: Path, change: str) -> None:
    make, parts = CHANGES[change]
    make(copied)
    for command in READING:
        done = here(copied, *command)
        if done.code:
            refused(done, *parts)
        assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize("name", NAMES)
def test_every_place_may_have_any_name(tmp_path: Path, base_folder: Path, name: str) -> None:
    """The working folder, the config, the data, the storage root, the cache and the store: a plan finds all of them."""
    folder = tmp_path / name
    (folder / "in").mkdir(parents=True)
    tiny.write_texts(folder / "in" / f"{name}.jsonl", tiny.COLOURS, "north", 60)
    made = write_config(folder, base_folder, f"in/{name}.jsonl", storage={"root": f"r {name}", "cache": f"c/{name}"})
    config = made.rename(folder / f"{name}.yaml")
    assert "1 expert: 1 missing" in here(folder, "plan", f"./{config.name}").out
    assert {path.name for path in folder.iterdir()} == {"in", config.name, f"r {name}", "c"}
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_a_plan_refuses_places_that_no_run_can_write(tmp_path: Path, base_folder: Path) -> None:
    tiny.write_texts(tmp_path / "a.jsonl", tiny.COLOURS, "north", 60)
    write_config(tmp_path, base_folder, "a.jsonl", storage={"cache": "cache"})
    for key, value in {"storage.root": "/proc/x", "storage.root ": "a.jsonl", "storage.cache": "a.jsonl/x",
                       "tracking.uri": "sqlite:////proc/x/m.db", "tracking.uri ": f"sqlite:///{tmp_path}",
                       "storage.root  ": "x" * 300}.items():  # fmt: skip
        setting = f"{key.strip()}={json.dumps(value)}"
        plan, run = (here(tmp_path, command, "ttmoe.yaml", "--set", setting) for command in ("plan", "run"))
        refused(plan, key.strip())
        refused(run, key.strip())
        assert plan.err == run.err


def test_cached_files_that_are_cut_short_or_folders_are_made_again(tmp_path: Path, base_folder: Path) -> None:
    tiny.write_texts(tmp_path / "a.jsonl", tiny.COLOURS, "north", 60)
    write_config(tmp_path, base_folder, "a.jsonl")
    first = here(tmp_path, "plan", "ttmoe.yaml").out
    files = [path for path in (tmp_path / "runs" / "cache").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        for content in (path.read_bytes()[:-9], b"", b"[1]", b"\xff\x00", None):
            path.unlink()
            path.mkdir() if content is None else path.write_bytes(content)
            assert here(tmp_path, "plan", "ttmoe.yaml").out == first, (path.name, content)


@pytest.mark.parametrize("encoding", ["hex", "rot13", "undefined", "utf-99", "a\tb", "latin 1.5"])
def test_an_encoding_that_decodes_no_text_is_refused(tmp_path: Path, base_folder: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    write_config(tmp_path, base_folder, "a.csv")
    setting = f"tasks.colours.source.encoding={json.dumps(encoding)}"
    refused(here(tmp_path, "plan", "ttmoe.yaml", "--set", setting), "unknown encoding", "latin-1")


@pytest.mark.parametrize("arguments", [["new/"], ["new/sub/"], ["--out", "new/"], ["rows.csv", "new/"]])
def test_init_writes_into_a_folder_that_does_not_exist(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60)))
    target = next(each for each in arguments if each.endswith("/")) + "ttmoe.yaml"
    done = here(tmp_path, "init", *arguments)
    assert (done.code, f"wrote {target}" in done.out, f"ttmoe run {target}" in done.out) == (0, True, True), done.err
    assert (tmp_path / target).is_file()
    refused(here(tmp_path, "init", *arguments), target, "--force")


def test_a_long_path_of_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from cluster.error import ClusterError
    from cluster.local import ray_session

    def refuse(**_: Any) -> None:
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x/sockets")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match="AF_UNIX path length") as caught, ray_session():
        pass
    assert "set RAY_TMPDIR to a folder with a short path" in caught.value.fix


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def lines(done: Done) -> list[Any]:
    """The rows that were printed as JSON."""
    assert done.code == 0, done.err
    return [json.loads(line, parse_constant=refuse_constant) for line in done.out.splitlines()]


def test_columns_that_predict_passes_on_are_json_without_repr(library: Path, tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    columns = {"text": ["red north1", "cat"], "bytes": [b"caf\xc3\xa9", b"\xff"], "sums": [float("inf"), float("nan")],
               "day": [datetime.date(2024, 1, 2), None], "money": [Decimal("1.50"), None],
               "nested": [[{"x": float("-inf"), "b": b"y"}], []],
               "length": [datetime.timedelta(seconds=1), None]}  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first, second = lines(here(library, "predict", "--file", str(tmp_path / "a.parquet")))
    assert (first["bytes"], second["bytes"], first["day"], first["money"]) == ("café", "\\xff", "2024-01-02", "1.50")
    assert (first["sums"], second["sums"], first["nested"]) == (None, None, [{"x": None, "b": "y"}])
    assert first["length"] == "0:00:01"
    done = here(library, "predict", "--file", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "a.csv"))
    assert done.code == 0, done.err
    assert "b'" not in (tmp_path / "a.csv").read_text()


def test_every_command_with_json_prints_json(copied: Path) -> None:
    """Although metrics are infinite or no numbers."""
    metric = "insert into model_version_tags(key, value, name, version) select 'ttmoe.metric.{}', '{}', name, version "
    for name, value in {"test.loss": "nan", "test.accuracy": "inf", "seconds": "-inf"}.items():
        execute(copied, metric.format(name, value) + "from model_versions")
    ls, show = ("experts", "ls"), ("experts", "show", "colours")
    for command in (("plan", "ttmoe.yaml"), ls, (*ls, "--all"), show, ("status",), ("data", "ttmoe.yaml")):
        done = here(copied, *command, "--json")
        assert done.code == 0, done.err
        json.loads(done.out, parse_constant=refuse_constant)


def test_columns_of_one_name_are_refused_by_both(library: Path, base_folder: Path, tmp_path: Path) -> None:
    texts, labels = [f"text {i}" for i in range(60)], ["ab"[i % 2] for i in range(60)]
    for number, names in enumerate((["text", "text", "label"], ["text", "label", "label"])):
        table = pyarrow.Table.from_arrays([pyarrow.array(texts), pyarrow.array(texts if number == 0 else labels),
                                           pyarrow.array(labels)], names=names)  # fmt: skip
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        (repeated,) = {name for name in names if names.count(name) > 1}
        write_config(tmp_path, base_folder, "a.parquet")
        what = f"repeated column names: {repeated}"
        refused(here(tmp_path, "plan", "ttmoe.yaml"), what, "write the file again with other names")
        refused(here(library, "predict", "--file", str(tmp_path / "a.parquet")), what, "write the file again")


@pytest.mark.parametrize(("name", "data"), [
    ("a.csv", "text,other\nred north1,1\ncat,2\n".encode("utf-16")),
    ("a.json", json.dumps([{"text": "red north1"}, {"text": "cat"}], indent=2).encode("utf-8-sig")),
    ("a.tsv", "text\tother\rred north1\t1\rcat\t2\r".encode("utf-16-be")),
])  # fmt: skip
def test_predict_answers_files_as_other_tools_write_them(library: Path, tmp_path: Path, name: str, data: bytes) -> None:
    import gzip

    (tmp_path / name).write_bytes(data)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data, mtime=0))
    answers = [lines(here(library, "predict", "--file", str(tmp_path / each))) for each in (name, f"{name}.gz")]
    assert answers[0] == answers[1]
    assert [row["text"] for row in answers[0]] == ["red north1", "cat"]
