"""The JSON Schema of a config: it accepts what a config may be, and describes every key."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from orchestrator.config.json_schema import schema_text
from orchestrator.config.loading import STARTER, apply_overrides, load_config, recipe_names, recipe_text
from orchestrator.config.yaml_document import read_yaml
from ttmoe.errors import InputError

SCHEMA = json.loads(schema_text())
VALID = (
    "seed=1", "head=frozen", "search=null",
    "adapter.layers=2-5", "adapter.layers=3-", "adapter.layers=all", "adapter.targets=[q, 'mlp.*']",
    "adapter.shape=auto", "adapter.shape=16x24|24x16", "adapter.shape={q: auto, v: 16x24|24x16@2}",
    "train.lr=1e-3", "train.batch_tokens=null", "train.steps=3.0", "tasks.trec.train={}",
    "router.layers=0-4", "router.layers=trunk", "router.layers=[0, 3]",
    "router.require=all", "router.require=0.5", "router.require=[trec]", "router.compare_depths=auto",
    "router.compare_depths=false", "resources.gpus_per_expert=auto", "resources.gpus_per_expert=0.5",
    "resources.experts_per_job=4", "tasks.sms_spam.label.names={0: 1, 1: true, no: 2.5}",
    "tasks.reviews.label.ranges={low: [null, 0], high: [0, null]}", "tasks.trec.where=[{column: a, in: [1, b, true]}]",
    "tasks.trec.where=[{column: a, above: 1, below: 2.5}]", "tasks.trec.split.group={column: a}",
    "tasks.trec.source={train: {path: a.csv}, test: {path: b.csv}}",
    "tasks.new={kind: pair, source: {path: a.csv}, columns: {first: a, second: b}, label: {column: c}}",
    "tasks.new={kind: choice, source: {path: a.csv}, columns: {text: a, choices: [b, c]}, label: {column: d}}",
    "tasks.new={kind: generate, source: {path: a.csv}, columns: {prompt: a, answer: b}}",
    "search={tasks: all}", "search={tasks: [trec, sarcasm]}", "search.method=grid", "search.objectives=[accuracy]",
    "search.space={}", "search.space.lr=keep", "search.space.lr=[1e-3]", "search.space.targets=[[q], [q, 'mlp.*']]",
    "search.space.layers=[all, 2-]", "search.rungs={first: 9}", "search.budget={minutes: 1.5}",
    "search.trials_per_job=auto", "search.trials_per_job=4", "search.max_parameters=null",
    "storage.trunk_gb=0", "tracking.uri=http://h:5000",
)  # fmt: skip
WRONG = (
    "train.stesp=3", "train.steps=0", "train.steps=3.5", "train.steps=many", "train.schedule=cosin", "seed=-1",
    "adapter.layers=4", "adapter.targets=q", "adapter.targets=[]", "base.max_length=null", "search.cores=[2]",
    "search.tasks=trec", "search.space.lr=fast", "search.space.targets=[q, v]", "search.objectives=[size]",
    "search.rungs={factor: 3}", "search.trials_per_job=0",
    "router.require=1.5", "router.layers=[a]", "tasks.trec.kind=texts", "tasks.trec.columns={txt: a}",
    "tasks.trec.label=yes", "tasks.trec.where=[{column: a, in: []}]", "library=null", "tasks.trec.source=a.csv",
    "tasks.reviews.label.ranges={low: [0], high: [0, null]}",
)  # fmt: skip


def quickstart(override: str) -> dict[str, Any]:
    return apply_overrides(read_yaml(recipe_text("quickstart"), "").data, [override])[0]


def problems(data: Any) -> list[str]:
    as_json = json.loads(json.dumps(data))  # keys of YAML may be numbers, those that an editor compares are text
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(as_json)]


def test_it_is_a_schema_of_the_draft_it_names() -> None:
    assert jsonschema.validators.validator_for(SCHEMA) is jsonschema.Draft7Validator
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert not {"prefixItems", "$defs"} & set(schema_text().split('"'))


@pytest.mark.parametrize("name", [*recipe_names(), STARTER])
def test_it_accepts_the_recipes(name: str) -> None:
    assert not problems(read_yaml(recipe_text(name), name).data)


def test_it_accepts_the_starter_with_all_its_commented_keys() -> None:
    text = recipe_text(STARTER)
    start = text.index("# adapter:")
    shown = "".join(line.removeprefix("# ") for line in text[start:].splitlines(keepends=True))
    assert not problems(read_yaml(text[:start] + shown, STARTER).data)


@pytest.mark.parametrize("override", VALID)
def test_it_accepts_what_a_config_accepts(override: str) -> None:
    load_config("quickstart", [override])
    assert not problems(quickstart(override))


@pytest.mark.parametrize("override", WRONG)
def test_it_finds_what_a_config_refuses(override: str) -> None:
    with pytest.raises(InputError):
        load_config("quickstart", [override])
    assert problems(quickstart(override))


def test_it_names_required_keys() -> None:
    assert problems({}) == [f"{key!r} is a required property" for key in ("library", "base", "tasks")]


def test_every_key_shows_a_text_and_no_default_of_null() -> None:
    for section in (SCHEMA, *SCHEMA["definitions"].values()):
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            described = SCHEMA["definitions"].get(value.get("$ref", "").rpartition("/")[2], value)
            assert value.get("description") or described["description"], key
            assert value.get("default", "") is not None, key
