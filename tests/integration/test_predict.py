"""``ttmoe predict`` on a registered library: texts, standard input, files, and files on a local Ray."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import commands
import pyarrow.parquet
import pytest
from commands import SCRIPT, cells, environment, open_registry, succeeded
from predict_library import ROWS, answers_of, check_printed, register_library
from rich.console import Console
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.config.store_address import find_store
from orchestrator.predict.leftovers import run_name
from orchestrator.predict.request import PredictRequest
from ttmoe.errors import InfeasibleError, InputError

pytestmark = pytest.mark.integration

MANY = [row | {"number": i} for i in range(200) for row in ROWS]


@pytest.fixture(scope="module")
def home(base_folder, fresh_store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    router = register_library(folder / "runs", base_folder, tmp_path_factory.mktemp("made"), fresh_store)
    folder.joinpath("router").symlink_to(router)
    folder.joinpath("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MANY))
    return folder


@pytest.fixture(scope="module")
def answers(home, base_folder) -> list[Any]:
    answers = answers_of(home / "router", base_folder, ROWS)
    assert len({answer.task for answer in answers}) >= 2
    return answers


def rows_of(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def here(home: Path, *arguments: str) -> Result:
    """Run the command in this process, which is faster."""
    return CliRunner().invoke(app, ["predict", "--root", str(home / "runs"), *arguments])


def test_texts_as_a_table_and_as_json(home, answers):
    plain = [(row["text"], answer) for row, answer in zip(ROWS, answers, strict=True) if len(row) == 1 and answer.label]
    texts, expected = map(list, zip(*plain, strict=True))
    table = here(home, *texts).stdout
    for text, answer in zip(texts, expected, strict=True):
        assert cells(table, text)[1:4] == [answer.task, answer.label, f"{answer.confidence:.3f}"]
    printed = rows_of(here(home, "--json", "--", *texts).stdout)
    assert [row["text"] for row in printed] == texts
    check_printed(printed, expected)


def test_lines_through_a_pipe_are_answered_while_it_is_open(home, answers):
    """Rows of every form; each is answered before the next line is written."""
    lines = [row["text"] if len(row) == 1 else json.dumps(row) for row in ROWS]
    process = subprocess.Popen(
        [SCRIPT, "predict"], cwd=home, env=environment(), text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    printed = []
    for line in lines:
        process.stdin.write(line + "\n")
        printed.append(json.loads(process.stdout.readline()))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err == f"store: sqlite:///{home}/runs/mlflow.db (storage.root)\n"
    assert [{k: row[k] for k in given} for row, given in zip(printed, ROWS, strict=True)] == ROWS
    check_printed(printed, answers)


def test_a_file_into_each_format(home, answers, tmp_path):
    done = here(home, "--file", str(home / "in.jsonl"), "--out", str(tmp_path / "out.parquet"))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "1,600 rows in" in done.stderr
    assert "rows/s" in done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert [row["number"] for row in table.to_pylist()] == [row["number"] for row in MANY]
    check_printed(table.to_pylist(), answers * 200)
    # The output is valid input: its answer columns are renamed and kept beside the new ones.
    again = rows_of(here(home, "--file", str(tmp_path / "out.parquet")).stdout)
    check_printed(again, answers * 200)
    assert [row["input_label"] for row in again] == [row["label"] for row in again]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.parquet"]


def test_a_bad_row_is_reported_before_the_model_is_loaded(home, tmp_path, monkeypatch):
    monkeypatch.setattr("ttmoe.routed.RoutedModel.load", None)
    (tmp_path / "in.csv").write_text("question,label\nred,x\n,y\n")
    done = here(home, "--file", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"))
    assert (done.exit_code, "no column 'text'" in done.stderr, "--text" in done.stderr) == (2, True, True)
    done = here(home, "--file", str(tmp_path / "in.csv"), "--text", "question")
    assert (done.exit_code, f"{tmp_path}/in.csv:3" in done.stderr, done.stdout) == (2, True, "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_ttmoe_base_names_the_folder_of_a_moved_base(home, base_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TTMOE_BASE", str(tmp_path / "none"))
    done = here(home, "red")
    assert (done.exit_code, "TTMOE_BASE" in done.stderr) == (2, True)
    monkeypatch.setenv("TTMOE_BASE", str(shutil.copytree(base_folder, tmp_path / "moved")))
    assert here(home, "red").exit_code == 0


def test_a_stale_router_answers_with_a_warning(base_folder, fresh_store, tmp_path):
    register_library(tmp_path / "runs", base_folder, tmp_path, fresh_store)
    registry = open_registry(tmp_path / "runs")
    done = here(tmp_path, "--json", "red")
    assert (done.exit_code, done.stderr) == (0, "")
    run, folder = registry.start_run("lib", "run", {}, "", {}), tmp_path / "library" / "experts" / "colours"
    registry.register_expert("lib", "colours", "newer", folder, run, {}, promote=True)
    done = here(tmp_path, "--json", "red")
    assert done.exit_code == 0
    (line,) = done.stderr.splitlines()
    assert "warning: router v1 of lib is STALE: it uses another version of colours" in line
    assert len(rows_of(done.stdout)) == 1


def own_lines(output: str) -> list[str]:
    """The lines of the output that are not from Ray's core, which reports every process that it could restart."""
    return [line for line in output.splitlines() if "core_worker.cc" not in line]


@pytest.fixture(scope="module")
def cluster():
    from cluster.local import ray_session

    with ray_session():
        yield


@pytest.fixture
def on_ray(cluster, home, monkeypatch):
    """A function that answers a file on Ray and returns the messages."""
    from orchestrator.predict.ray_data import predict_on_ray

    def run(out: Path, pattern: str = str(home / "in.jsonl"), *, force=False, workers=None, gpus=None) -> str:
        messages = io.StringIO()
        request = PredictRequest(file=pattern, out=out, force=force, on_ray=True, workers=workers, gpus=gpus,
                                 store=find_store(root=home / "runs"))  # fmt: skip
        predict_on_ray(request, Console(file=messages, width=100))
        return messages.getvalue()

    for name in ("TTMOE_BASE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return run


def test_on_ray_the_answers_are_in_the_order_of_the_rows(on_ray, answers, tmp_path, capfd):
    out = tmp_path / "out"
    messages = on_ray(out, workers=2)
    assert "1,600 rows; chunks: 7; workers: 2 (cpu)" in messages
    assert "in the order of the rows: 7" in messages
    files = sorted(out.glob("*.parquet"))
    assert len(files) == 7
    assert sorted(out.iterdir()) == [out / "_SUCCESS", *files]
    rows = [row for path in files for row in pyarrow.parquet.read_table(path).to_pylist()]
    assert [(row["text"], row["number"]) for row in rows] == [(row["text"], row["number"]) for row in MANY]
    check_printed(rows, answers * 200)
    assert pyarrow.parquet.read_table(out).num_rows == len(MANY)  # one schema for all files
    assert list(tmp_path.iterdir()) == [out]
    printed = capfd.readouterr()
    assert (printed.out, own_lines(printed.err)) == ("", [])
    with pytest.raises(InputError, match="not empty"):
        on_ray(out)


def test_on_ray_a_failure_is_reported_and_leaves_no_files(on_ray, tmp_path, base_folder, monkeypatch):
    import orchestrator.predict.ray_data as module

    moved = shutil.copytree(base_folder, tmp_path / "moved")
    monkeypatch.setenv("TTMOE_BASE", str(moved))
    original = module.choose_pool_size

    def damage_base(*arguments: Any) -> Any:
        (moved / "model.safetensors").write_bytes(b"cut")  # after the driver has checked it
        return original(*arguments)

    monkeypatch.setattr(module, "choose_pool_size", damage_base)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "part-000000.parquet").write_text("of before")
    with pytest.raises(InputError, match=r"moved: model[.]safetensors is damaged"):
        on_ray(tmp_path / "old", force=True, workers=1)
    assert [path.read_text() for path in (tmp_path / "old").iterdir()] == ["of before"]
    shutil.rmtree(tmp_path / "old")
    monkeypatch.undo()
    with pytest.raises(InfeasibleError, match="fits on no node"):
        on_ray(tmp_path / "out", gpus=64.0)
    assert list(tmp_path.iterdir()) == [moved]


def test_the_command_on_ray_replaces_an_existing_folder(cluster, home, answers, tmp_path):
    """The input is a CSV file with lists of options as JSON. The folder itself stays: it may be a mounted volume."""
    out = tmp_path / "out"
    out.mkdir()
    inode = out.stat().st_ino
    (out / "part-000007.parquet").write_text("of before")
    machine, _, started, token = run_name().split("-")
    (out / f".{machine}-{2**22 + 1}-{started}-{token}-part-000000.parquet").write_text("of a killed command")
    with (tmp_path / "in.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["text", "second", "choices"])
        table.writeheader()
        table.writerows(row | {"choices": json.dumps(row.get("choices"))} for row in ROWS)
    done = succeeded(commands.here(tmp_path, "predict", "--ray", "--file", "in.csv", "--out", "out", "--force",
                                   "--root", str(home / "runs")))  # fmt: skip
    lines = own_lines(done.err)
    assert (done.out, lines[0]) == ("", f"store: sqlite:///{home}/runs/mlflow.db (--root)"), done.err
    assert (len(lines), "8 rows; chunks: 1; workers: 1" in lines[1]) == (4, True), done.err
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "part-000000.parquet"]
    assert out.stat().st_ino == inode
    check_printed(pyarrow.parquet.read_table(out).to_pylist(), answers)
