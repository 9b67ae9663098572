"""``TextBank`` and the public names of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ttmoe
from ttmoe import AdapterSpec, Choice, InputError, TextBank, public

COLOURS = ["a red wall", "the red car", "red rain", "a red hat", "a blue wall", "the blue car", "blue rain", "blue hat"]
ANSWERS = ["red"] * 4 + ["blue"] * 4


@pytest.fixture
def bank(base_folder):
    return TextBank.open(base_folder, dtype="float32", max_length=32)


def test_fit_answer_save_and_load(base_folder, tmp_path):
    bank = TextBank.open(base_folder, dtype="float32")
    bank.add("colours", ("red", "blue"))
    losses = bank.fit("colours", COLOURS, ANSWERS, epochs=20, batch_size=4)
    assert bank.answer(COLOURS, "colours") == ANSWERS
    assert losses[-1] < losses[0] / 4
    assert len(losses) == 40
    assert bank.bank.training is False
    bank.save("colours", tmp_path)
    other = TextBank.open(base_folder, dtype="float32")
    other.load(tmp_path)
    assert other.answer(COLOURS, "colours") == ANSWERS
    assert other.labels == bank.labels


def test_training_changes_no_other_expert_and_not_the_base(bank):
    bank.add("first", ("red", "blue"))
    bank.fit("first", COLOURS, ANSWERS, epochs=2)
    before = {key: value.clone() for key, value in bank.bank.state_dict().items()}
    bank.add("second", ("red", "blue"), AdapterSpec(method="lora", rank=4), seed=1)
    bank.fit("second", COLOURS, ANSWERS, epochs=2)
    after = bank.bank.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(p.requires_grad for p in bank.bank.parameters())
    assert all(p.grad is None for p in bank.bank.model.parameters())


def test_the_same_seed_gives_the_same_expert(base_folder):
    runs = []
    for _ in range(2):
        bank = TextBank.open(base_folder, dtype="float32")
        bank.add("colours", ("red", "blue"))
        runs.append(bank.fit("colours", COLOURS, ANSWERS, epochs=2))
    assert runs[0] == runs[1]


def test_choices_and_several_experts_in_one_call(bank):
    rows = [Choice(text, ("red", "blue")) for text in COLOURS]
    bank.add("which")
    bank.fit("which", rows, [0] * 4 + [1] * 4, epochs=30, batch_size=4, lr=1e-2)
    assert bank.answer(rows, "which") == ["0"] * 4 + ["1"] * 4
    bank.add("colours", ("red", "blue"))
    bank.fit("colours", COLOURS, ANSWERS, epochs=20, batch_size=4)
    assert bank.answer([rows[0], COLOURS[5], COLOURS[0]], ["which", "colours", "colours"]) == ["0", "blue", "red"]


def test_invalid_inputs(bank, tmp_path):
    bank.add("colours", ("red", "blue"))
    bank.add("which")
    with pytest.raises(InputError, match="'green' is not an answer of 'colours'"):
        bank.fit("colours", COLOURS, ["green"] * 8)
    with pytest.raises(InputError, match="'red' is not an answer of 'which'"):
        bank.fit("which", COLOURS, ["red"] * 8)
    with pytest.raises(InputError, match="8 rows and 7 answers"):
        bank.fit("colours", COLOURS, ANSWERS[:7])
    with pytest.raises(InputError, match="1 names for 8 inputs"):
        bank.answer(COLOURS, ["colours"])
    with pytest.raises(InputError, match="no expert named 'x'"):
        bank.fit("x", COLOURS, ANSWERS)
    with pytest.raises(InputError, match="contains no model"):
        TextBank.open(tmp_path)


def test_every_public_name_exists():
    assert "TextBank" in dir(ttmoe)
    for name in public.__all__:
        assert getattr(ttmoe, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ttmoe.nothing


def test_importing_the_package_imports_no_torch():
    code = "import sys, ttmoe; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
