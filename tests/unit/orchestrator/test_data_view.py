"""``ttmoe data``: rows by split and class, what was left out, rows as they will be read, lengths, and shared rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_causal
import yaml
from typer.testing import CliRunner, Result

from orchestrator import api
from orchestrator.cli import app
from orchestrator.data_view.shared_inputs import find_shared_inputs
from workers.data.examples import Example


def write_config(folder: Path, base_folder: Path, tasks: dict[str, Any], **base: Any) -> Path:
    settings = {"folder": str(base_folder), "dtype": "float32", "max_length": 8} | base
    config = {"library": "tiny", "base": settings, "tasks": tasks, "storage": {"root": str(folder / "runs")}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "tiny.yaml"


def data(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", str(config), *arguments], env={"COLUMNS": "60"})


@pytest.fixture
def config(tmp_path: Path, base_folder: Path) -> Path:
    """Two tasks, with repeated rows, an empty one, and rows that both have."""
    colours = [{"text": t, "label": w} for t, w in tiny.sentences(240, tiny.COLOURS, "north")]
    colours += [*colours[:7], {"text": "", "label": "red"}]
    animals = [{"text": t, "label": w} for t, w in tiny.sentences(90, tiny.ANIMALS, "south")]
    animals += [{"text": f" {row['text'].upper()}", "label": "cat"} for row in colours[:3]]
    tasks = {
        "colours": tiny.text_task(tiny.write_rows(tmp_path / "colours.jsonl", colours)),
        "animals": tiny.text_task(tiny.write_rows(tmp_path / "animals.jsonl", animals)),
    }
    tasks["colours"]["where"] = [{"column": "text", "matches": r"\S"}]
    return write_config(tmp_path, base_folder, tasks)


def test_a_task_is_shown_as_it_is_read(config: Path) -> None:
    result = data(config, "colours")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "colours: kind text" in lines
    assert f"source {config.parent / 'colours.jsonl'}" in lines
    assert "rows 248: train 144, validation 48, test 48" in lines
    assert "left out 7 repeated, 1 filtered" in lines
    assert "red 48 16 16 80" in lines
    assert "class train validation test all" in lines
    assert sum(line.startswith("1 text north") or line.startswith("1 text ") for line in lines) == 1
    assert sum(line.startswith("label ") for line in lines) == 5
    assert "colours and animals: 3, such as" in result.stdout
    assert max(map(len, result.stdout.splitlines()[5:-3])) <= 60


def test_json_has_everything_in_full(config: Path) -> None:
    shown = json.loads(data(config, "--json").stdout)
    assert json.loads(json.dumps(api.data(config).to_dict())) == shown
    assert list(api.data(config, "animals").tasks) == ["animals"]
    assert list(shown["tasks"]) == ["colours", "animals"]
    task = shown["tasks"]["colours"]
    assert task["rows_read"] == 248
    assert task["left_out"] == {"duplicates": 7, "filtered": 1}
    assert task["counts"]["test"] == {"blue": 16, "green": 16, "red": 16}
    assert task["columns"] == {"text": "text", "label": "label"}
    assert all(row["label"] in row["text"].split() for row in task["examples"])
    assert len(task["examples"]) == 5
    assert task["tokens"] == {"median": 5, "p95": 7, "longest": 7}
    assert shown["shared"][0] | {"sample": ""} == {"tasks": ["colours", "animals"], "count": 3, "sample": ""}


def test_the_share_of_longer_rows_stands_beside_max_length(config: Path) -> None:
    assert "no row has more than base.max_length (8)" in data(config, "colours").stdout
    shorter = data(config, "colours", "--set", "base.max_length=4").stdout
    assert "% have more than base.max_length (4), and are cut" in shorter


def test_of_many_classes_the_largest_ten_are_shown(tmp_path: Path, base_folder: Path) -> None:
    rows = [{"text": f"north{i % 20} south{i // 20} red", "label": f"c{min(i % 14, 12)}"} for i in range(280)]
    task = tiny.text_task(tiny.write_rows(tmp_path / "many.jsonl", rows))
    shown = data(write_config(tmp_path, base_folder, {"many": task})).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert sum(line.startswith("c") and not line.startswith(("class", "columns")) for line in lines) == 10
    assert any(line.startswith("and 3 more") and line.endswith(" 60") for line in lines)
    assert any(line.startswith("c12 ") and line.endswith(" 40") for line in lines)


def test_pairs_options_and_control_characters(tmp_path: Path, base_folder: Path) -> None:
    pairs = [{"a": f"north{i}\n\x1b[31mred", "b": f"[bold]south{i}", "y": i % 2} for i in range(40)]
    options = [{"q": f"red {i}", "o": ["cat", f"dog {i}"], "y": i % 2} for i in range(40)]
    tasks = {
        "pairs": {"kind": "pair", "source": {"path": str(tiny.write_rows(tmp_path / "p.jsonl", pairs))},
                  "columns": {"first": "a", "second": "b"}, "label": {"column": "y"}},
        "options": {"kind": "choice", "source": {"path": str(tiny.write_rows(tmp_path / "o.jsonl", options))},
                    "columns": {"text": "q", "choices": "o"}, "label": {"column": "y"}},
    }  # fmt: skip
    shown = data(write_config(tmp_path, base_folder, tasks)).stdout
    assert "\\n\\x1b[31mred" in shown
    assert "\x1b" not in shown
    assert "second     [bold]south" in shown
    assert "option 1   dog" in shown
    assert "rows that two tasks share" not in shown


def test_errors_are_those_of_a_plan(config: Path, tmp_path: Path, base_folder: Path) -> None:
    refused = data(config, "colour")
    assert (refused.exit_code, "no task is named 'colour'\n  did you mean `colours`?" in refused.output) == (2, True)
    for setting in ("tasks.colours.columns.text=txt", "base.folder=/nowhere", "base.max_length=99"):
        planned = CliRunner().invoke(app, ["plan", str(config), "--set", setting])
        shown = data(config, "--set", setting)
        assert (shown.exit_code, shown.stderr) == (2, planned.stderr)
    writing = write_config(tmp_path, base_folder, {"w": tiny_causal.writing_task(tmp_path / "w.jsonl")})
    assert data(writing).stderr == CliRunner().invoke(app, ["plan", str(writing)]).stderr


def test_declared_rows_and_bases_without_weights(tmp_path: Path, base_folder: Path) -> None:
    task = {"kind": "text", "declared": {"rows": 100, "tokens": 30}}
    config = write_config(tmp_path, base_folder, {"later": task})
    settings = yaml.safe_load(config.read_text())
    settings["base"] = {"config": str(base_folder / "config.json"), "dtype": "float32", "max_length": 64}
    config.write_text(yaml.safe_dump(settings))
    shown = data(config).stdout
    assert "declared: there are no rows yet" in shown
    assert "30 in each row, as declared" in shown


def test_each_pair_of_tasks_is_counted_once() -> None:
    rows = {name: [Example((text,), (), 0, "") for text in texts] for name, texts in
            {"a": ["x y", "z"], "b": ["X  Y", "w", "x y"], "c": ["x y", "w"]}.items()}  # fmt: skip
    found = find_shared_inputs(rows)
    assert {each.tasks: (each.count, each.sample) for each in found} == {
        ("b", "c"): (2, "w"), ("a", "b"): (1, "x y"), ("a", "c"): (1, "x y")
    }  # fmt: skip
    assert found[0].tasks == ("b", "c")
