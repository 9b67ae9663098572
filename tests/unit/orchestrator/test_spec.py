import subprocess
import sys

from orchestrator.spec import spec_hash

SPEC = {"recipe": 1, "train": {"steps": 300, "lr": 5e-3, "seed": None}, "targets": ["q", "v"]}


def test_the_order_of_keys_does_not_count():
    turned = {key: SPEC[key] for key in reversed(SPEC)}
    turned["train"] = dict(reversed(SPEC["train"].items()))
    assert spec_hash(turned) == spec_hash(SPEC)


def test_every_value_counts():
    others = [
        SPEC | {"recipe": 2},
        SPEC | {"train": SPEC["train"] | {"lr": 5.0000001e-3}},
        SPEC | {"train": SPEC["train"] | {"seed": 0}},
        SPEC | {"targets": ["v", "q"]},
        SPEC | {"more": None},
    ]
    assert len({spec_hash(spec) for spec in [SPEC, *others]}) == 6


def test_tuples_are_lists_and_integers_are_no_floats():
    assert spec_hash(SPEC | {"targets": ("q", "v")}) == spec_hash(SPEC)
    assert spec_hash({"a": 1}) != spec_hash({"a": 1.0})


def test_the_hash_never_changes():
    """Registered experts are found by it: another way of hashing would make every one of them stale."""
    assert spec_hash(SPEC) == "3712b9698d1228b283a08cff299ad3a98cb88c3ef79a5d00a0acf633af20ba2b"


def test_another_process_finds_the_same_hash():
    code = f"from orchestrator.spec import spec_hash; print(spec_hash({SPEC!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spec_hash(SPEC)
