import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from ttmoe.errors import InputError
from workers.data import prepared as module
from workers.data.prepared import load_split, prepare_task
from workers.data.splits import SPLIT_NAMES
from workers.data.task import Task

ROOT = Path(__file__).parents[3]


def write(path, pairs):
    path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in pairs))
    return str(path)


def pairs(start, stop, labels="ab"):
    return [(f"text {i}", labels[i % len(labels)]) for i in range(start, stop)]


def task_of(source, **more):
    source = {"path": source} if isinstance(source, str) else source
    base = {"kind": "text", "columns": {"text": "text"}, "label": {"column": "label"}}
    return Task.model_validate({**base, "source": source, **more})


@pytest.fixture
def task(tmp_path):
    return task_of(write(tmp_path / "rows.jsonl", [*pairs(0, 100), ("TEXT 1", "b"), ("text 2 ", "b")]))


def refused(task, cache):
    with pytest.raises(InputError) as caught:
        prepare_task("t", task, cache)
    return caught.value


def test_a_task_is_prepared(task, tmp_path):
    found = prepare_task("t", task, tmp_path / "cache")
    assert (found.name, found.kind, found.label_names) == ("t", "text", ("a", "b"))
    assert found.counts["train"]["a"] + found.counts["train"]["b"] == len(load_split(found, "train"))
    assert sum(sum(counts.values()) for counts in found.counts.values()) == 99
    assert found.duplicates == 1
    assert found.left_out == {"conflicts": 2, "filtered": 0, "sampled": 0}
    assert found.majority == max(found.counts["test"].values()) / len(load_split(found, "test"))
    one = load_split(found, "test")[0]
    assert one.texts[0].casefold().startswith("text ")
    assert not list((tmp_path / "cache" / "tasks").glob(".part-*"))


def test_filters_and_samples_are_counted(task, tmp_path):
    more = task.model_dump() | {"where": [{"column": "text", "not_in": ["text 3"]}], "split": {"sample": 50}}
    found = prepare_task("t", Task.model_validate(more), tmp_path)
    assert found.left_out == {"conflicts": 2, "filtered": 1, "sampled": 48}


@pytest.mark.parametrize(
    ("kind", "columns", "texts", "choices"),
    [
        ("text", {"text": "a"}, ("1 a",), ()),
        ("pair", {"first": "a", "second": "b"}, ("1 a", "1 b"), ()),
        ("choice", {"text": "a", "choices": "c"}, ("1 a",), ("x", "y")),
        ("generate", {"prompt": "a"}, ("1 a",), ()),
    ],
)
def test_rows_without_labels_are_split_and_say_so(tmp_path, kind, columns, texts, choices):
    rows = [{"a": f"{i} a", "b": f"{i} b", "c": ["x", "y"]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[5]]))
    task = Task.model_validate(
        {"kind": kind, "columns": columns, "routing_rows": {"path": str(tmp_path / "rows.jsonl")}}
    )
    assert Task.model_validate(task.model_dump(mode="json")) == task
    found = prepare_task("t", task, tmp_path)
    assert (found.label_names, found.labelled, found.duplicates) == ((), False, 1)
    assert {split: set(counts) for split, counts in found.counts.items()} == {
        split: {"inputs"} for split in SPLIT_NAMES
    }
    examples = [example for split in SPLIT_NAMES for example in load_split(found, split)]
    assert len(examples) == sum(found.rows.values()) == 60
    assert (texts, choices, "") in {(each.texts, each.choices, each.answer) for each in examples}


def test_rows_without_labels_stand_alone(tmp_path):
    source, rows = {"path": write(tmp_path / "rows.jsonl", pairs(0, 9))}, {"path": "x.jsonl"}
    text = {"kind": "text", "columns": {"text": "text"}}
    for entry, said in (
        (text, "Field required"),
        (text | {"source": source, "routing_rows": rows, "label": {"column": "label"}}, "cannot be combined"),
        (text | {"routing_rows": rows, "label": {"column": "label"}}, "routing_rows have no label column"),
        ({"kind": "generate", "columns": {"prompt": "p", "answer": "a"}, "routing_rows": rows}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=said):
            Task.model_validate(entry)
    missing = Task.model_validate(text | {"routing_rows": {"path": str(tmp_path / "none.jsonl")}})
    assert "tasks.t.routing_rows" in refused(missing, tmp_path).where


def test_the_second_time_nothing_is_read(task, tmp_path, monkeypatch):
    first = prepare_task("t", task, tmp_path)
    monkeypatch.setattr(module, "read_rows", lambda *_: pytest.fail("rows were read"))
    assert prepare_task("t", task, tmp_path) == first
    assert prepare_task("other", task, tmp_path).folder == first.folder


def test_a_warm_task_needs_no_heavy_import(task, tmp_path):
    found = prepare_task("t", task, tmp_path)
    code = (
        "import sys; from pathlib import Path; from workers.data.task import Task\n"
        "from workers.data.prepared import prepare_task\n"
        "print(prepare_task('t', Task.model_validate_json(sys.argv[1]), Path(sys.argv[2])).fingerprint)\n"
        "print([m for m in ('datasets', 'pandas', 'torch', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, task.model_dump_json(), str(tmp_path)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[:2] == [found.fingerprint, "[]"]


def test_the_key_follows_data_and_config(tmp_path):
    rows = pairs(0, 60)
    path = write(tmp_path / "rows.jsonl", rows)
    first = prepare_task("t", task_of(path), tmp_path)
    assert prepare_task("t", task_of(path, split={"salt": "x"}), tmp_path).folder != first.folder
    write(tmp_path / "rows.jsonl", rows[::-1])
    again = prepare_task("t", task_of(path), tmp_path)
    assert again.folder != first.folder
    assert again.fingerprint == first.fingerprint  # the same rows in another order are the same data
    write(tmp_path / "rows.jsonl", [*rows[:-1], ("text 59", "a")])
    assert prepare_task("t", task_of(path), tmp_path).fingerprint != first.fingerprint


def test_the_order_of_labels_is_part_of_the_data(tmp_path):
    path = write(tmp_path / "rows.jsonl", pairs(0, 60))
    one, other = (
        prepare_task("t", task_of(path, label={"column": "label", "names": names}), tmp_path)
        for names in ({"a": "A", "b": "B"}, {"b": "B", "a": "A"})
    )
    assert one.label_names == other.label_names[::-1]
    assert one.fingerprint != other.fingerprint


def test_keys_that_a_config_adds_do_not_count(task, tmp_path):
    class Entry(Task):
        train: int = 0

    entry = Entry.model_validate({**task.model_dump(), "train": 5})
    assert prepare_task("t", entry, tmp_path) == prepare_task("t", task, tmp_path)


def test_given_splits(tmp_path):
    source = {
        "train": {"path": write(tmp_path / "a.jsonl", pairs(0, 60))},
        "test": {"path": write(tmp_path / "b.jsonl", pairs(50, 80))},
    }
    found = prepare_task("t", task_of(source), tmp_path)
    assert found.left_out == {"conflicts": 0, "filtered": 0, "leaked": 10, "sampled": 0}
    assert sum(found.counts["test"].values()) == 30
    assert {e.key for e in load_split(found, "train")}.isdisjoint({e.key for e in load_split(found, "test")})


def test_given_splits_share_their_labels(tmp_path):
    source = {
        "train": {"path": write(tmp_path / "a.jsonl", pairs(0, 60, "abc"))},
        "test": {"path": write(tmp_path / "b.jsonl", pairs(100, 120, "bc"))},
    }
    found = prepare_task("t", task_of(source), tmp_path)
    assert {e.label for e in load_split(found, "test")} == {1, 2}
    write(tmp_path / "b.jsonl", pairs(100, 120, "bz"))
    error = refused(task_of(source), tmp_path)
    assert "label 'z' of row 2 is unknown" in error.what
    assert "(in the test split)" in error.what
    assert "known: a, b, c;" in error.fix


def test_choices_and_pairs_come_back_whole(tmp_path):
    rows = [{"q": f"q{i}", "c": ["x", "y", "z"], "label": i % 2, "r": "r"} for i in range(40)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "c.jsonl")
    choice = prepare_task("t", task_of(path, kind="choice", columns={"text": "q", "choices": "c"}), tmp_path)
    assert choice.label_names == ("0", "1", "2")
    assert load_split(choice, "train")[0].choices == ("x", "y", "z")
    pair = prepare_task("t", task_of(path, kind="pair", columns={"first": "q", "second": "r"}), tmp_path)
    assert load_split(pair, "train")[0].texts[1] == "r"


def test_the_longest_list_of_options_names_the_labels(tmp_path):
    source = {}
    for name, options in [("train", ["x", "y", "z"]), ("test", ["x", "y"])]:
        rows = [{"q": f"{name} {i}", "c": options, "label": i % 2} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        source[name] = {"path": str(tmp_path / f"{name}.jsonl")}
    found = prepare_task("t", task_of(source, kind="choice", columns={"text": "q", "choices": "c"}), tmp_path)
    assert found.label_names == ("0", "1", "2")


def test_what_cannot_be_used_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", pairs(0, 40, "a"))
    error = refused(task_of(path), tmp_path)
    assert "fewer than two labels: a" in error.what
    assert error.where == "tasks.t.label"
    label = {"column": "label", "names": {"a": "A", "b": "B", "c": "C"}}
    assert "no row of train has label B, C" in refused(task_of(path, label=label), tmp_path).what
    path = write(tmp_path / "few.jsonl", pairs(0, 4))
    assert "no rows in split validation, test" in refused(task_of(path), tmp_path).what
    (tmp_path / "none.jsonl").write_text("")
    error = refused(task_of(str(tmp_path / "none.jsonl")), tmp_path)
    assert "there are no rows" in error.what
    assert error.where == "tasks.t"
    assert not list((tmp_path / "tasks").glob("*"))


def test_a_files_error_names_task_and_file(tmp_path):
    error = refused(task_of(str(tmp_path / "gone.jsonl")), tmp_path)
    assert error.where == f"tasks.t.source, {tmp_path / 'gone.jsonl'}"
    (tmp_path / "bad.jsonl").write_text("{}\n{")
    error = refused(task_of(str(tmp_path / "bad.jsonl")), tmp_path)
    assert error.where == f"tasks.t.source, {tmp_path / 'bad.jsonl'}:2"


def test_a_split_that_is_not_there(task, tmp_path):
    found = prepare_task("t", task, tmp_path)
    with pytest.raises(InputError, match="no split 'dev'"):
        load_split(found, "dev")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("meta.json", empty), ("meta.json", lambda path: path.write_text("[]")), ("train.parquet", cut),
     ("test.parquet", empty), ("test.parquet", Path.unlink)],
)  # fmt: skip
def test_a_damaged_task_is_prepared_again(task, tmp_path, name, damage):
    first = prepare_task("t", task, tmp_path)
    rows = [load_split(first, split) for split in SPLIT_NAMES]
    damage(first.folder / name)
    assert prepare_task("t", task, tmp_path) == first
    assert [load_split(first, split) for split in SPLIT_NAMES] == rows
    assert list(first.folder.parent.iterdir()) == [first.folder]


def prepared_by_an_earlier_version(task, cache):
    found = prepare_task("t", task, cache)
    meta = json.loads((found.folder / "meta.json").read_text())
    assert set(meta.pop("files")) == set(SPLIT_NAMES)
    (found.folder / "meta.json").write_text(json.dumps(meta))
    return found


@pytest.mark.parametrize(("damage", "prepare"), [(flip, None), (cut, prepared_by_an_earlier_version)])
def test_a_damaged_split_is_named_when_it_is_read_and_prepared_again_by_the_next_command(
    task, tmp_path, damage, prepare
):
    found = prepare(task, tmp_path) if prepare else prepare_task("t", task, tmp_path)
    rows, path = load_split(found, "test"), found.folder / "test.parquet"
    damage(path)
    assert prepare_task("t", task, tmp_path) == found  # planning reads no split
    with pytest.raises(InputError, match="damaged") as caught:
        load_split(found, "test")
    assert (caught.value.where, "repeat" in caught.value.fix) == (str(path), True)
    assert load_split(prepare_task("t", task, tmp_path), "test") == rows


def test_a_damaged_split_that_may_not_be_removed_is_left_to_who_may(task, tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    found = prepare_task("t", task, tmp_path)
    flip(found.folder / "test.parquet")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match="damaged") as caught:
        load_split(found, "test")
    assert f"somebody who may write to {found.folder} has to delete this file" in caught.value.fix


def test_a_task_that_an_earlier_version_prepared_is_used(task, tmp_path, monkeypatch):
    found = prepared_by_an_earlier_version(task, tmp_path)
    monkeypatch.setattr(module, "read_rows", lambda *_: pytest.fail("rows were read"))
    assert prepare_task("t", task, tmp_path) == found
    assert sum(len(load_split(found, split)) for split in SPLIT_NAMES) == 99


def test_the_files_are_on_the_disk_before_the_folder_has_its_name(task, tmp_path, monkeypatch):
    synchronised, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synchronised.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file)
    )
    folder = prepare_task("t", task, tmp_path).folder
    files = [Path(path) for path in synchronised if "/.part-" in path]
    assert {path.name for path in files} == {path.name for path in folder.iterdir()}


def test_threads_that_write_at_once_agree(task, tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    rename, got = os.rename, []

    def meet(source, target):
        if Path(target).parent.name == "tasks":  # both have written, and neither is in place
            together.wait()
        rename(source, target)

    monkeypatch.setattr(os, "rename", meet)
    threads = [threading.Thread(target=lambda: got.append(prepare_task("t", task, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2
    assert got[0] == got[1]
    assert [p.name for p in (tmp_path / "tasks").iterdir()] == [got[0].folder.name]


def test_processes_that_write_at_once_agree(task, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(prepare_task, [("t", task, tmp_path)] * 4, chunksize=1)
    assert len({one.fingerprint for one in found}) == 1
    assert len(list((tmp_path / "tasks").iterdir())) == 1


def test_a_stopped_write_leaves_nothing(task, tmp_path, monkeypatch):
    import pyarrow.parquet

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_task("t", task, tmp_path)
    assert list((tmp_path / "tasks").iterdir()) == []
    assert sum(map(len, (load_split(prepare_task("t", task, tmp_path), s) for s in SPLIT_NAMES))) == 99
