import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest
from pydantic import BaseModel, Field

from orchestrator.config.schema import SearchSettings
from orchestrator.plan.identity import hashed_settings, spec_hash
from ttmoe.adapter import AdapterSpec
from ttmoe.base import Base
from ttmoe.features import FeatureSpec
from workers.training.settings import MEMORY_ONLY, ROUTER_UNHASHED, RouterSettings, TrainSettings

SPEC = {"recipe": 1, "train": {"steps": 300, "lr": 5e-3, "seed": None}, "targets": ["q", "v"]}


def test_the_order_of_keys_does_not_change_the_hash():
    reordered = {key: SPEC[key] for key in reversed(SPEC)}
    reordered["train"] = dict(reversed(SPEC["train"].items()))
    assert spec_hash(reordered) == spec_hash(SPEC)


def test_every_value_changes_the_hash():
    others = [
        SPEC | {"recipe": 2},
        SPEC | {"train": SPEC["train"] | {"lr": 5.0000001e-3}},
        SPEC | {"train": SPEC["train"] | {"seed": 0}},
        SPEC | {"targets": ["v", "q"]},
        SPEC | {"more": None},
    ]
    assert len({spec_hash(spec) for spec in [SPEC, *others]}) == 6


def test_tuples_equal_lists_and_integers_differ_from_floats():
    assert spec_hash(SPEC | {"targets": ("q", "v")}) == spec_hash(SPEC)
    assert spec_hash({"a": 1}) != spec_hash({"a": 1.0})


def test_the_hash_is_stable():
    """Registered experts are found by it: another way of hashing would make all of them stale."""
    assert spec_hash(SPEC) == "3712b9698d1228b283a08cff299ad3a98cb88c3ef79a5d00a0acf633af20ba2b"


def test_another_process_computes_the_same_hash():
    code = f"from orchestrator.plan.identity import spec_hash; print(spec_hash({SPEC!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spec_hash(SPEC)


class Inner(BaseModel):
    old: int = 0
    new: int = Field(default=7, json_schema_extra={"neutral": 3})


class Outer(Inner):
    inner: Inner = Inner()


@dataclass(frozen=True)
class Form:
    old: int = 0
    new: str = field(default="", metadata={"neutral": ""})


class TestHashedSettings:
    def test_a_neutral_value_is_not_hashed_even_if_it_is_not_the_default(self):
        assert hashed_settings(Inner(new=3)) == {"old": 0}
        assert hashed_settings(Inner()) == {"old": 0, "new": 7}
        assert hashed_settings(Form()) == {"old": 0}
        assert hashed_settings(Form(new="x")) == {"old": 0, "new": "x"}

    def test_nested_sections_are_treated_the_same(self):
        assert hashed_settings(Outer(new=3, inner=Inner(new=3))) == {"old": 0, "inner": {"old": 0}}

    def test_excluded_fields_are_not_hashed(self):
        assert hashed_settings(Inner(), exclude={"new"}) == {"old": 0}
        assert hashed_settings(Form(new="x"), exclude={"old"}) == {"new": "x"}


# The fields that version 0.1.0 hashed at any value. Never add to these: mark a new field with its neutral value.
HASHED_AT_ANY_VALUE = {
    TrainSettings: "steps batch_size batch_tokens lr head_lr weight_decay warmup schedule eval_every "
    "patience clip label_smoothing head_dropout seed",
    RouterSettings: "kind layers pooling rows_per_task epochs lr weight_decay noise batch_size unknown loose",
    SearchSettings: "task trials ranks cores steps max_parallel train seed",
    AdapterSpec: "method targets first_layer last_layer rank alpha shape init dropout",
    FeatureSpec: "layers pooling",
}


@pytest.mark.parametrize("model", HASHED_AT_ANY_VALUE, ids=lambda model: model.__name__)
def test_a_new_setting_has_a_neutral_value(model):
    """Without a neutral value it would change every hash, and every library would be retrained."""
    if issubclass(model, BaseModel):
        marks = {name: info.json_schema_extra or {} for name, info in model.model_fields.items()}
    else:
        marks = {info.name: info.metadata for info in fields(model)}
    hashed = [
        name for name, mark in marks.items() if "neutral" not in mark and name not in MEMORY_ONLY | ROUTER_UNHASHED
    ]
    assert hashed == HASHED_AT_ANY_VALUE[model].split()


def test_where_a_base_lies_is_recorded_and_not_hashed():
    """Its folder, and how another node finds it, are not recorded. A field more would change every hash."""
    base = Base("hub", "id", "main", "ab", "/here", "float32", 32, "mean", (("hub", "id"),))
    assert base.identity() == {"digest": "ab", "dtype": "float32", "max_length": 32, "pooling": "mean"}
    assert base.record() == base.identity() | {"source": "hub", "id": "id", "revision": "main"}
