"""Encoding, batching and scoring of rows of every kind."""

from __future__ import annotations

import pytest
import torch
from library import KINDS, base_of, save_library

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Choice, collate, encode, encode_inputs, pad_id_of, pool
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert
from ttmoe.scoring import score

OPTIONS = ("cat", "dog north1", "blue blue blue")
ROWS = ["red", ("cat north1", "dog"), Choice("green", OPTIONS), ("blue",), Choice("north1 north2", ("red", "dog"))]


@pytest.fixture(scope="module")
def tokenizer(base_folder):
    return load_tokenizer(base_of(base_folder))


@pytest.fixture(scope="module")
def bank(base_folder, tmp_path_factory):
    base = base_of(base_folder)
    folder = save_library(tmp_path_factory.mktemp("scored"), base)
    made = Bank(load_body(base), "mean").eval()
    for task in KINDS:
        load_expert(made, folder / "experts" / task, base.digest)
    return made


def alone(bank, tokenizer, name, *texts):
    return bank(dict(tokenizer(*texts, return_tensors="pt")), name)[0]


@torch.no_grad()
def test_scores_of_mixed_kinds_equal_those_of_single_rows(bank, tokenizer):
    items = encode_inputs(tokenizer, ROWS, 32)
    names = ["colours", "animals", "which", "which", "colours"]
    scores = score(bank, items, names, 0)
    assert [tuple(s.shape) for s in scores] == [(3,), (2,), (3,), (1,), (3,)]
    expected = [
        alone(bank, tokenizer, "colours", "red"),
        alone(bank, tokenizer, "animals", "cat north1", "dog"),
        torch.cat([alone(bank, tokenizer, "which", "green", option) for option in OPTIONS]),
        alone(bank, tokenizer, "which", "blue"),
        alone(bank, tokenizer, "colours", "north1 north2", "red dog"),
    ]
    for found, wanted in zip(scores, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_name_for_all_rows(bank, tokenizer):
    items = encode_inputs(tokenizer, ROWS, 32)
    for name in KINDS:
        each, one = score(bank, items, [name] * len(items), 0), score(bank, items, name, 0)
        assert [s.shape for s in each] == [s.shape for s in one]
        torch.testing.assert_close(torch.cat(each), torch.cat(one), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kept", [True, False])
def test_scores_from_trunk_states(bank, tokenizer, base_folder, kept):
    """With given states and with states computed in ``score``, for options and whole rows in one batch."""
    items = encode_inputs(tokenizer, ROWS, 32)
    upper = AdapterSpec(first_layer=1, init="paper", rank=2)
    for name, classes in (("one", 3), ("two", 1)):
        bank.add(name, upper, classes, torch.Generator().manual_seed(classes), random_head=True)
    names = ["one", "one", "two", "two", "two"]
    sequences = [tokens for item, name in zip(items, names, strict=True)
                 for tokens in (item.options if name == "two" and item.options else (item.whole,))]  # fmt: skip
    states = bank.trunk(1).states(collate(sequences, 0)) if kept else None
    whole, above = score(bank, items, names, 0), score(bank, items, names, 0, states=states, depth=1)
    assert all(torch.equal(one, other) for one, other in zip(whole, above, strict=True))
    if kept:
        with pytest.raises(InputError, match="pad the states to the batch's tokens"):  # not cut to them
            score(bank, items, names, 0, states=torch.nn.functional.pad(states, (0, 0, 0, 1)), depth=1)
        other = score(bank, items, names, 0, states=states + 1.0, depth=1)
        assert not torch.allclose(torch.cat(other), torch.cat(whole), atol=1e-3)
    for name in ("one", "two"):
        bank.remove(name)
    with pytest.raises(InputError, match="below the trunk's depth"):
        score(bank, items, "colours", 0, states=states, depth=1)


def test_no_rows_and_no_expert(bank, tokenizer):
    assert score(bank, [], "colours", 0) == score(bank, [], [], 0) == []
    with pytest.raises(InputError, match="no expert named 'nobody'"):
        score(bank, encode_inputs(tokenizer, ["red"], 32), "nobody", 0)


def test_encoding_keeps_the_order_of_texts_and_pairs(tokenizer):
    rows = ["red", ("cat", "dog"), ("blue",), "green cat", ("red red", "north1")]
    encoded = encode(tokenizer, rows, 32)
    for row, tokens in zip(rows, encoded, strict=True):
        expected = tokenizer(*([row] if isinstance(row, str) else row))
        assert tokens["input_ids"] == expected["input_ids"]
    assert encode(tokenizer, [], 32) == []
    assert max(len(t["input_ids"]) for t in encode(tokenizer, [("red " * 50, "dog " * 9)], 12)) == 12
    with pytest.raises(InputError, match="3 texts"):
        encode(tokenizer, [("red", "cat", "dog")], 32)


def test_items_have_a_length_and_options(tokenizer):
    text, pair, choice = encode_inputs(tokenizer, ROWS[:3], 32)
    assert (text.length, pair.length, len(choice.options), text.options) == (3, 6, 3, ())
    assert choice.length == max(len(o["input_ids"]) for o in choice.options)
    assert choice.whole["input_ids"] == tokenizer("green", " ".join(OPTIONS))["input_ids"]


def test_collate_pads_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1]}, {"input_ids": [8], "token_type_ids": [1]}]
    made = collate(rows, 9)
    assert made["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert made["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert {value.dtype for value in made.values()} == {torch.int64}


def test_pooling_reads_real_tokens_only():
    states = torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(states, mask, "last").tolist() == [[4, 5, 6, 7], [20, 21, 22, 23]]
    assert pool(states, mask, "mean").tolist() == [[2, 3, 4, 5], [16, 17, 18, 19]]
    assert pool(states, mask, "mean").dtype == pool(states, mask, "last").dtype == torch.float32


def test_the_padding_id(tokenizer):
    class Causal:
        pad_token_id, eos_token_id = None, 7

    assert (pad_id_of(tokenizer), pad_id_of(Causal()), pad_id_of(object())) == (0, 7, 0)
