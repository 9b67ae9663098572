"""The section `search`: what is refused, which tasks it names, and that earlier searches keep their identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.loading import load_config, resolved_yaml
from orchestrator.config.search_settings import SearchSettings
from orchestrator.plan.identity import hashed_settings
from ttmoe.errors import InputError

CONFIG = """\
library: mine
base:
  folder: m
tasks:
  one: {kind: text, source: {path: a.jsonl}, columns: {text: t}, label: {column: l}}
  two: {kind: generate, source: {path: b.jsonl}, columns: {prompt: p, answer: a}}
search:
"""


def load(folder: Path, search: str):
    path = folder / "my.yaml"
    path.write_text(CONFIG + "".join(f"  {line}\n" for line in search.split("; ")))
    return load_config(str(path)).config


@pytest.mark.parametrize(
    ("search", "key", "what", "fix"),
    [
        ("trials: 3", "search", "needs either task or tasks; neither is given", "add one"),
        ("task: one; tasks: [one, two]", "search", "needs either task or tasks; both are given", "keep"),
        ("tasks: [one, tow]", "search.tasks", "no task is named 'tow'", "did you mean `two`?"),
        ("tasks: [one, one]", "search.tasks", "listed twice", "once"),
        ("tasks: one", "search.tasks", "must be 'all' or a list, not 'one'", ""),
        ("task: one; method: tpd", "search.method", "not 'tpd'", "did you mean `tpe`?"),
        ("task: one; objectives: [parameters]", "search.objectives", "must include accuracy", "[accuracy, parameters]"),
        ("task: one; objectives: [accuracy, accuracy]", "search.objectives", "each once", "[accuracy, parameters]"),
        ("task: one; objectives: [acuracy]", "search.objectives.0", "not 'acuracy'", "did you mean `accuracy`?"),
        ("task: one; ranks: [0]", "search.ranks.0", "greater than or equal to 1, not 0", ""),
        ("task: one; steps: 9; rungs: {first: 9}", "search.rungs.first", "fewer steps than a trial, which has 9", "1"),
        ("task: one; rungs: {factor: 3}", "search.rungs.first", "this key is required", "add it: Optimizer steps"),
        ("task: one; rungs: {first: 9, factor: 1}", "search.rungs.factor", "not 1", ""),
        ("task: one; method: truncate; rungs: {first: 9}", "search.rungs", "truncate has no rungs", "remove"),
        ("task: one; budget: {}", "search.budget", "needs a limit", "minutes"),
        ("task: one; method: tpe; budget: {trials: 3}", "search.budget.trials", "elsewhere", "`search.trials`"),
        ("task: one; budget: {hours: 3}", "search.budget.hours", "unknown key", "trials, steps, minutes"),
        (
            "task: one; method: truncate; space: {alpha: [4], lr: keep}",
            "search.space",
            "the rank alone, and not alpha",
            "",
        ),
        ("task: one; max_parameters: 0", "search.max_parameters", "not 0", ""),
        ("task: one; accuracy_within: 1", "search.accuracy_within", "less than 1", ""),
        ("task: one; space: {lr: fast}", "search.space.lr", "'auto' or 'keep'", ""),
        ("task: one; space: {lr: [0]}", "search.space.lr.0", "greater than 0", ""),
        ("task: one; space: {alpha: []}", "search.space.alpha", "at least 1 item", ""),
        ("task: one; space: {layers: [4]}", "search.space.layers.0", "must be a string, not 4", ""),
        ("task: one; space: {layers: [all, 5-2]}", "search.space.layers.1", "not a range of layers", "2-5"),
        ("task: one; space: {targets: [q]}", "search.space.targets.0", "must be a list, not 'q'", ""),
        ("task: one; space: {targets: [[q, '(']]}", "search.space.targets.0.1", "not a regular expression", "role"),
        ("task: two; space: {head: [frozen]}", "search.space.head", "'two' is of kind generate", "remove"),
        ("tasks: all; space: {head: [frozen]}", "search.space.head", "'two' is of kind generate", "remove"),
        ("task: one; train: {steps: 3}", "search.train.steps", "set elsewhere", "`search.steps`"),
    ],
)
def test_a_problem_names_key_value_and_fix(tmp_path, search, key, what, fix):
    with pytest.raises(InputError) as caught:
        load(tmp_path, search)
    assert caught.value.where.endswith(f", {key}")
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_the_searched_tasks(tmp_path):
    assert load(tmp_path, "task: two").searched_tasks == ("two",)
    assert load(tmp_path, "tasks: [two, one]").searched_tasks == ("two", "one")
    assert load(tmp_path, "tasks: all").searched_tasks == ("one", "two")


def test_the_steps_of_the_rungs():
    def rungs(**search):
        return SearchSettings(task="one", **search).rung_steps

    assert rungs() == (100,)
    assert rungs(rungs={"first": 10}) == (10, 30, 90, 100)
    assert rungs(steps=64, rungs={"first": 8, "factor": 2}) == (8, 16, 32, 64)


EVERY_KEY = """\
tasks: [one]; method: random; objectives: [accuracy]; trials: 9; ranks: [1, 2]; cores: [4, 8]; max_parameters: 5000; \
space: {shapes: all, per_role: true, targets: [[q], [q, v]], layers: [all, 2-], alpha: [4], lr: [1e-3], \
head: [frozen]}; steps: 90; rungs: {first: 10}; budget: {steps: 500, minutes: 2.5}; confirm: 3; finalists: 2; \
accuracy_within: 0.01; references: [4]; trials_per_job: 2; warm_start: false"""


def test_the_resolved_config_is_the_same(tmp_path):
    for search in (EVERY_KEY, "task: one", "tasks: all; space: {}"):
        config = load(tmp_path, search)
        (resolved := tmp_path / "resolved.yaml").write_text(resolved_yaml(config))
        assert load_config(str(resolved)).config.search == config.search


def test_a_search_of_an_earlier_version_keeps_its_hash():
    """What version 0.1.0 hashed of `search`, at its defaults."""
    assert hashed_settings(SearchSettings(task="one"), exclude={"train"}) == {
        "task": "one",
        "trials": 8,
        "ranks": (2, 4, 8, 16),
        "cores": (4, 6),
        "steps": 100,
        "max_parallel": None,
        "seed": 0,
    }


def test_every_new_key_changes_the_hash(tmp_path):
    hashed = hashed_settings(load(tmp_path, EVERY_KEY).search)
    assert set(hashed) == set(SearchSettings.model_fields)


def test_the_forecast_counts_the_adapters_that_are_trained_for_comparison():
    from orchestrator.search.search_forecast import _steps

    few, more = (SearchSettings(task="one", steps=50, references=ranks) for ranks in ((), (1, 16)))
    assert [_steps(search, "tpe", 100, 0) for search in (few, more)] == [8 * 50, 10 * 50]
