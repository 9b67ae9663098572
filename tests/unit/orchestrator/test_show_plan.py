"""Output of ``ttmoe plan``."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import tiny
import yaml
from library_plan import FakeRegistry, plan_of, version_of
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.plan import router_forecast
from orchestrator.plan import show as module
from orchestrator.plan.forecast import make_forecast
from orchestrator.plan.library_state import read_library_state
from orchestrator.plan.show import MEMORY_PARTS
from orchestrator.pool.capacity import GB, Node

EXPERT_KEYS = {"state", "why", "step", "parameters", "lora16_parameters", "spec_hash", "memory", "seconds", "rows",
               "removed_rows", "cut_share", "micro_batch", "checkpointing"}  # fmt: skip


@pytest.fixture
def ttmoe_plan(base_folder, tmp_path, monkeypatch):
    """Run ``ttmoe plan tiny.yaml ...`` in a folder with this library."""
    tasks = {
        name: tiny.text_task(tiny.write_texts(tmp_path / f"{name}.jsonl", words, filler))
        for name, words, filler in (("colours", tiny.COLOURS, "north"), ("animals", tiny.ANIMALS, "south"))
    }
    config = {"library": "tiny", "base": {"folder": str(base_folder), "max_length": 32},
              "adapter": {"rank": 4, "layers": "1-"}, "train": {"steps": 40}, "tasks": tasks}  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(app, ["plan", "tiny.yaml", *arguments])


def test_in_a_new_library_everything_is_missing_and_nothing_is_created(ttmoe_plan, tmp_path):
    result = ttmoe_plan()
    assert result.exit_code == 0, result.output
    for part in ("Library tiny on ", "2 experts: 2 missing", "no version yet", "router     missing", "1 CPUs",
                 "activations", "trunk      about", "skip 50% of the base's layers", "time       unknown"):  # fmt: skip
        assert part in result.stdout, part
    assert "\x1b" not in result.stdout
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"cache"}


def test_json_is_one_object_and_nothing_else(ttmoe_plan):
    result = ttmoe_plan("--json", "--set", "train.steps=7")
    plan = json.loads(result.stdout)
    assert (result.exit_code, plan["library"], plan["infeasible"], plan["seconds"]) == (0, "tiny", None, None)
    assert set(plan) >= {"library", "base", "experts", "orphaned", "router", "search", "resources", "seconds"}
    colours = plan["experts"]["colours"]
    assert set(colours) == EXPERT_KEYS
    assert colours["lora16_parameters"] == 2 * 16 * 2 * tiny.WIDTH
    memory = colours["memory"]
    assert memory["total"] == sum(memory[part] for part in MEMORY_PARTS)
    assert memory["optimizer"] == 8 * (colours["parameters"] + 3 * (tiny.WIDTH + 1))
    assert (colours["micro_batch"], colours["checkpointing"]) == (None, False)
    assert plan["resources"]["experts_per_job"] == 1
    assert plan["router"]["state"] == "missing"


def test_rows_that_are_in_no_split_are_named(ttmoe_plan, tmp_path):
    path = tmp_path / "colours.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    first, second = json.loads(lines[0]), json.loads(lines[1])
    other = next(label for label in tiny.COLOURS if label != second["label"])
    path.write_text("".join([*lines, lines[0], lines[0], json.dumps(second | {"label": other}) + "\n"]))
    assert first["text"] != second["text"]
    out = " ".join(ttmoe_plan().stdout.split())
    assert (
        f"data colours: {len(lines) + 3} rows, without 2 repeated, 2 with the text of a row with another label" in out
    )
    assert "animals:" not in out
    experts = json.loads(ttmoe_plan("--json").stdout)["experts"]
    assert experts["colours"]["removed_rows"] == {"duplicates": 2, "conflicts": 2}
    assert sum(experts["colours"]["rows"].values()) == len(lines) - 1


def test_rows_that_are_cut_are_named(ttmoe_plan):
    out = " ".join(ttmoe_plan("--set", "base.max_length=3").stdout.split())
    assert "colours: 240 rows; about 100% have more than 3 tokens and are cut (base.max_length)" in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resources.gpus_per_expert=1", "1 GPUs"),
        ("resources.cpus_per_expert=6400", "6400 CPUs"),
        ("train={batch_size: 100000000, micro_batch: null}", "of memory"),
    ],
)
def test_work_that_fits_no_node_is_an_error_with_exit_code_3(ttmoe_plan, override, message):
    result = ttmoe_plan("--set", override)
    assert result.exit_code == 3, result.output
    assert "error: resources" in result.stderr
    assert message in result.stderr
    assert "2 experts: 2 missing" in result.stdout  # the plan is printed too
    as_json = ttmoe_plan("--json", "--set", override)
    assert as_json.exit_code == 3
    assert message in json.loads(as_json.stdout)["infeasible"]


@pytest.mark.integration
def test_d18_the_plan_says_what_the_jobs_of_stage_2_take(ttmoe_plan):
    out = " ".join(ttmoe_plan().output.split())
    assert re.search(r"router about [\d.]+ kB of features on disk; \d+ CPUs, [\d.]+ MB of memory", out)
    assert re.search(r"features: [\d.]+ MB of memory in each job test: [\d.]+ MB in each job; comparison ", out)
    assert re.search(r"comparison with routers on fewer layers: [\d.]+ MB", out)
    forecast = json.loads(ttmoe_plan("--json").output)["resources"]["router"]
    assert all(forecast[job]["memory"] > 0 for job in ("features", "training", "testing", "comparing"))


def test_a_router_that_fits_no_node_is_an_error_of_plan_and_run(ttmoe_plan, monkeypatch):
    monkeypatch.setattr(router_forecast, "ROUTER_PROCESS_BYTES", 10**18)
    for result in (ttmoe_plan(), CliRunner().invoke(app, ["run", "tiny.yaml"])):
        assert result.exit_code == 3, result.output
        assert "the router requires 1.0 EB of memory" in result.stderr


def test_autoscaling_waits_for_nodes(ttmoe_plan):
    settings = ("resources.cpus_per_expert=6400", "resources.gpus_per_expert=0", "resources.autoscaling=true",
                "resources.max_parallel=2")  # fmt: skip
    result = ttmoe_plan(*[argument for setting in settings for argument in ("--set", setting)])
    assert result.exit_code == 0, result.output
    assert "the run waits for new nodes" in result.stdout


def test_an_unknown_key_is_an_error(ttmoe_plan):
    result = ttmoe_plan("--set", "train.stesp=3")
    assert (result.exit_code, "did you mean `steps`?" in result.stderr) == (2, True)


@pytest.fixture
def shown(base_folder, tmp_path):
    """Print a plan against a registry with these versions, with ``copies`` of the first task."""

    def show(versions, *, width=80, copies=0, **sections):
        plan = plan_of(base_folder, tmp_path, **sections)
        copied = {f"task-{i:03}": plan.experts["colours"] for i in range(copies)}
        plan = replace(plan, experts=plan.experts | copied)
        state = read_library_state(plan, FakeRegistry(versions(plan)))
        console = Console(width=width, file=StringIO())
        module._print_plan(plan, state, make_forecast(plan, state, [Node("n", 4, 0, 64 * GB)]), console)
        return console.file.getvalue()

    return show


def test_changed_cached_and_orphaned_experts_are_shown(shown, base_folder, tmp_path):
    before = plan_of(base_folder, tmp_path, tasks={"animals": {"train": {"steps": 200}}})

    def versions(plan):
        past = [version_of(before, task, 2, seconds_training=20, seconds_job=23, steps=100) for task in plan.experts]
        return [*past, replace(past[0], task="old")]

    out = shown(versions)
    assert "2 experts: 1 cached, 1 changed" in out
    assert re.search(r"animals +changed .* 11 seconds +train.steps", out)
    assert "orphaned   old" in out
    assert "about 11 seconds for the experts" in out
    assert max(map(len, (line for line in out.splitlines() if "animals" in line))) <= 80


def test_a_large_library_shows_missing_experts_and_counts_the_others(shown):
    def versions(plan):
        return [replace(version_of(plan, task), task=task) for task in list(plan.experts)[:-3]]

    out = shown(versions, copies=998)
    assert "1000 experts: 997 cached, 3 missing" in out
    assert "not shown  997 cached" in out
    assert [f"task-{i}" in out for i in (994, 995, 996, 997)] == [False, True, True, True]
    assert len(out.splitlines()) < 30
    all_missing = shown(lambda plan: [], copies=998)
    assert "not shown  960 to do" in all_missing
    assert len(all_missing.splitlines()) < 70


def test_a_plan_reads_an_existing_registry(ttmoe_plan, fresh_store, tmp_path):
    (tmp_path / "runs").mkdir(exist_ok=True)
    shutil.copy(fresh_store, tmp_path / "runs")
    result = ttmoe_plan("--json")
    assert (result.exit_code, json.loads(result.stdout)["orphaned"]) == (0, [])
    assert not Path(tmp_path, "runs", "tiny").exists()


@pytest.mark.parametrize(("sha256", "installed"), [("ab" * 32, True), ("ab" * 32, False), (None, True)])
def test_a_checksum_that_is_not_compared_is_named(base_folder, tmp_path, monkeypatch, sha256, installed):
    plan = plan_of(base_folder, tmp_path)
    base = plan.config.base.model_copy(update={"package": "model==1", "folder": None, "sha256": sha256})
    plan = replace(plan, config=plan.config.model_copy(update={"base": base}))
    monkeypatch.setattr(module, "installed_package", lambda requirement: installed and requirement == "model==1")
    lines = module._base(plan)
    assert bool(lines) == bool(sha256 and installed)
    assert all("was not compared" in text for _, text in lines)
