"""Plans of configs, and which spec hashes a change of the config changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from orchestrator.config.schema import Config
from orchestrator.plan.planning import make_plan
from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.base import empty_body
from ttmoe.errors import InputError
from workers.training import settings as train_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two tasks as files."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "colours": tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north"),
        "animals": tiny.write_texts(folder / "animals.jsonl", tiny.ANIMALS, "south"),
    }


@pytest.fixture
def config(base_folder, data, tmp_path):
    """Make the config with some sections replaced."""

    def make(**sections):
        tasks = {name: tiny.text_task(path) for name, path in data.items()}
        for name, settings in sections.pop("tasks", {}).items():
            tasks[name] = tasks[name] | settings
        base = {"folder": str(base_folder), "dtype": "float32"}
        library = {"library": "tiny", "base": base, "adapter": {"rank": 4}, "tasks": tasks,
                 "train": {"steps": 40}, "search": {"task": "colours", "trials": 2, "steps": 10},
                 "storage": {"root": str(tmp_path / "runs")}}  # fmt: skip
        return Config.model_validate(library | sections)

    return make


def hashes(plan):
    return {**plan.lock, "router": plan.router_hash, "search": plan.search_hash}


def changed(config, **sections):
    """Return the names whose hashes differ from those of the unchanged config."""
    before, after = hashes(make_plan(config())), hashes(make_plan(config(**sections)))
    return {name for name in before if before[name] != after[name]}


def test_a_plan_has_a_job_for_every_expert(config, tmp_path, base_folder):
    plan = make_plan(config())
    assert list(plan.experts) == ["colours", "animals"]
    job = plan.experts["colours"].job
    assert job.classes == 3
    assert Path(job.folder) == tmp_path / "runs" / "tiny" / "experts" / f"colours-{job.spec_hash[:12]}"
    groups = plan_groups(empty_body(plan.base), AdapterSpec(rank=4))
    assert job.parameters == count_parameters(groups)
    assert plan.experts["colours"].lora_parameters == 2 * tiny.LAYERS * 16 * 2 * tiny.WIDTH
    assert set(plan.experts["colours"].shapes) == {"q", "v"}
    assert not (tmp_path / "runs" / "tiny").exists()  # planning starts no work


def test_equal_configs_have_equal_hashes(config):
    assert hashes(make_plan(config())) == hashes(make_plan(config()))


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"tasks": {"animals": {"train": {"steps": 41}}}}, "animals router"),
        ({"tasks": {"animals": {"head": "frozen"}}}, "animals router"),
        ({"tasks": {"animals": {"adapter": {"rank": 2}}}}, "animals router"),
        ({"tasks": {"animals": {"split": {"validation": 0.2, "test": 0.2, "salt": "x"}}}}, "animals router"),
        ({"tasks": {"colours": {"train": {"steps": 41}}}}, "colours router"),
        ({"train": {"steps": 41}}, "colours animals router"),
        ({"adapter": {"rank": 4, "alpha": 15}}, "colours animals router search"),
        ({"seed": 1}, "colours animals router search"),
        ({"router": {"epochs": 31}}, "router"),
        ({"search": {"task": "colours", "trials": 3, "steps": 10}}, "search"),
        ({"search": {"task": "colours", "trials": 2, "steps": 10, "train": {"lr": 1e-2}}}, "search"),
        ({"search": {"task": "colours", "trials": 2, "steps": 10, "max_parallel": 1}}, ""),
        ({"search": {"task": "colours", "trials": 2, "steps": 10, "train": {"micro_batch": 4}}}, ""),
        ({"train": {"steps": 40, "micro_batch": 4, "checkpointing": True}}, ""),
        ({"tasks": {"colours": {"adapter": {"rank": 2}}}}, "colours router"),
        ({"tasks": {"colours": {"adapter": {"shape": "4x16|16x4"}}}}, "colours router"),
        ({"tasks": {"colours": {"adapter": {"method": "lora", "alpha": 8.0}}}}, "colours router"),
        ({"tasks": {"colours": {"adapter": {"targets": ["q"]}}}}, "colours router search"),
        ({"library": "other"}, ""),
        ({"resources": {"max_parallel": 1}}, ""),
        ({"base": {"dtype": "bfloat16"}}, "colours animals router search"),
    ],
    ids=str,
)
def test_a_change_changes_only_these_hashes(config, base_folder, sections, names):
    if "base" in sections:
        sections = {"base": {"folder": str(base_folder), **sections["base"]}}
    assert changed(config, **sections) == set(names.split())


@pytest.mark.parametrize("rows", [48, 5000])
def test_a_limit_of_validation_rows_that_changes_nothing_changes_no_hash(config, rows):
    """48 of 240 rows are for validation."""
    assert changed(config, train={"steps": 40, "validation_rows": rows}) == set()


def test_a_limit_below_the_validation_split_is_part_of_the_identity(config, monkeypatch):
    explicit = make_plan(config(train={"steps": 40, "validation_rows": 20}))
    assert explicit.experts["colours"].spec["train"]["validation_rows"] == 20
    before = hashes(make_plan(config()))
    monkeypatch.setattr(train_settings, "EVALUATION_ROWS", 20)
    assert hashes(make_plan(config())) == hashes(explicit)
    assert not set(hashes(explicit).values()) & set(before.values())


def test_an_explicit_shape_equal_to_auto_has_the_same_hash(config):
    shapes = {r: s.removeprefix("tt:").split("@")[0] for r, s in make_plan(config()).experts["colours"].shapes.items()}
    assert changed(config, adapter={"rank": 4, "shape": shapes}) == set()


def test_without_a_search_its_hash_is_none(config):
    assert make_plan(config(search=None)).search_hash is None


def test_a_search_on_several_tasks_is_the_same_in_any_order(config):
    def search_hash(**search):
        return make_plan(config(search={"trials": 2, "steps": 10, **search})).search_hash

    both = search_hash(tasks=["colours", "animals"])
    assert both == search_hash(tasks=["animals", "colours"]) == search_hash(tasks="all")
    assert both == search_hash(tasks="all", trials_per_job=2, max_parallel=1)
    assert (
        len({both, search_hash(task="colours"), search_hash(tasks=["colours"]), search_hash(tasks="all", seed=1)}) == 4
    )


def test_the_adapters_rank_is_part_of_a_search_whose_learning_rate_follows_from_it(config):
    def search_hash(rank, **search):
        return make_plan(config(adapter={"rank": rank}, search={"task": "colours", **search})).search_hash

    assert search_hash(4) == search_hash(8)
    assert search_hash(4, space={"lr": "keep"}) == search_hash(8, space={"lr": "keep"})
    assert search_hash(4, space={}) != search_hash(8, space={})


@pytest.mark.parametrize(
    ("sections", "where", "what"),
    [
        ({"adapter": {"shape": "4x4|8x8"}}, "adapter.shape", "shape 4x4|8x8 is for 16 to 64 features"),
        ({"tasks": {"animals": {"adapter": {"shape": "4x4|8x8"}}}}, "tasks.animals.adapter.shape", "16 to 64"),
        ({"adapter": {"layers": "2-"}}, "adapter.layers", "layers 2 to 1 are not a range of the base's 2 layers"),
        ({"adapter": {"targets": ["qq"]}}, "adapter.targets", "'qq' matches no linear map"),
        ({"router": {"layers": [0, 3]}}, "router.layers", "hidden state 3 is not in the range from 0 to 2"),
        ({"base": {"folder": "/gone"}}, "base.folder", "there is no folder /gone"),
    ],
    ids=str,
)
def test_invalid_settings_are_errors_of_planning(config, tmp_path, sections, where, what):
    with pytest.raises(InputError) as caught:
        make_plan(config(**sections))
    assert caught.value.where == where
    assert what in caught.value.what
    assert caught.value.fix
    assert not (tmp_path / "runs" / "tiny").exists()
