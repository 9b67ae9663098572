"""Sequences that share a row of a batch: what is computed of them does not change, in any architecture that packs."""

from __future__ import annotations

import random

import pytest
import torch
from architectures import ARCHITECTURES, OTHERS, stir, tiny_bank, tiny_model

from ttmoe.adapter import AdapterSpec
from ttmoe.attention import use_right_padding
from ttmoe.encoding import Item
from ttmoe.scoring import score_batch, score_inputs
from ttmoe.sequence_packing import PACKED_ARCHITECTURES, allows_packing, pack_sequences
from workers.training.batches import TokenizedRows
from workers.training.gradients import ExpertBatch, activation_checkpointing, add_gradients

LENGTHS = (3, 4, 9, 2, 3, 3, 8, 9)
SPEC = AdapterSpec(method="lora", rank=4, alpha=4.0)


def items_of(lengths, vocabulary=50, seed=0):
    """Rows with one or two answers."""
    draw, items = random.Random(seed), []
    for length in lengths:
        ids = {"input_ids": [draw.randrange(3, vocabulary) for _ in range(length)]}
        spans = ((1, 2), (length - 1, length)) if length > 3 else ((length - 1, length),)
        items.append(Item(ids, (ids,), len(spans), spans))
    return items


def causal_bank(monkeypatch, name, **settings):
    """A bank of two experts that generate text, with random weights and a random head in place of the base's."""
    bank = tiny_bank(name, use_cache=False, **settings)
    head = torch.nn.Linear(32, 50, bias=False)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(7))
    head.requires_grad_(False).logits = lambda states: head(states)
    monkeypatch.setattr(type(bank), "language_head", head, raising=False)
    for seed, expert in enumerate(("a", "b")):
        stir(bank.add(expert, SPEC, 0, torch.Generator().manual_seed(seed)), seed, 0.2)
    return bank


@pytest.mark.parametrize("name", sorted(PACKED_ARCHITECTURES & (ARCHITECTURES.keys() | OTHERS.keys())))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_states_are_those_of_each_sequence_alone(name, attention):
    model = tiny_model(name)
    if attention == "sdpa":
        if not model._supports_sdpa:
            pytest.skip("it has no such attention")
        model.set_attn_implementation("sdpa")
        use_right_padding(model)
    model.config.use_cache = False
    sequences = [item.whole for item in items_of(LENGTHS)]
    packing = pack_sequences(LENGTHS, [""] * len(LENGTHS), 9, 12)
    with torch.no_grad():
        packed = model(**packing.collate(sequences, 0, "cpu")).last_hidden_state
        for sequence, (row, first) in zip(sequences, packing.places, strict=True):
            ids = torch.tensor([sequence["input_ids"]])
            alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            torch.testing.assert_close(packed[row, first : first + len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_every_architecture_that_is_named_is_tested():
    assert ARCHITECTURES.keys() | OTHERS.keys() >= PACKED_ARCHITECTURES
    assert not any(map(allows_packing, map(tiny_model, ("opt", "bert", "bloom"))))


@pytest.mark.parametrize(("depth", "checkpointing"), [(0, False), (1, False), (1, True)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_packed_losses_and_gradients_equal_unpacked_ones(monkeypatch, name, depth, checkpointing):
    bank = causal_bank(monkeypatch, name)
    if depth:
        for expert in ("a", "b"):
            bank.remove(expert)
            bank.add(expert, AdapterSpec(method="lora", rank=4, alpha=4.0, first_layer=1), 0,
                     torch.Generator().manual_seed(0))  # fmt: skip
            stir(bank.expert(expert), ord(expert), 0.2)
    rows = TokenizedRows(items_of(LENGTHS), [0] * len(LENGTHS))
    batches = [
        ExpertBatch("a", rows, [0, 1, 3, 4, 5, 2], 0.0, 0, 0),
        ExpertBatch("b", rows, [3, 0, 4, 6, 7], 0.0, 0, 0),
    ]
    found = []
    for least in (0.0, 1.0):  # packed, and not
        monkeypatch.setattr("ttmoe.scoring.pack_sequences", lambda *given, least=least: pack_sequences(*given, least))
        bank.zero_grad()
        with activation_checkpointing(bank.model.train(), checkpointing):
            stats = add_gradients(bank, batches, 0, depth=depth, micro_batch=None)
        grads = {key: value.grad.clone() for key, value in bank.named_parameters() if value.grad is not None}
        found.append((stats, grads))
    (packed, some), (apart, others) = found
    assert some.keys() == others.keys()
    for one, other in zip(packed, apart, strict=True):
        assert one.loss.item() == pytest.approx(other.loss.item(), abs=1e-4)
        assert one.real_tokens == other.real_tokens
        assert one.processed_tokens < other.processed_tokens
    assert [each.processed_tokens for each in apart] == [6 * 9, 5 * 9]
    assert [each.processed_tokens for each in packed] == [3 * 9, 3 * 9]
    for key, grad in some.items():
        torch.testing.assert_close(grad, others[key], atol=1e-4, rtol=1e-4)
    assert any(grad.abs().max() > 1e-2 for grad in some.values())


def test_stored_states_are_packed_too(monkeypatch):
    bank, items = causal_bank(monkeypatch, "llama"), items_of(LENGTHS)
    inputs = score_inputs(bank, items, "a", 0)
    with torch.no_grad():
        states = bank.trunk(0).states(inputs.tokens)
        given = score_inputs(bank, items, "a", 0, states=states, packed_length=20)
        assert given.tokens["input_ids"].shape < inputs.tokens["input_ids"].shape
        assert given.states.shape[:2] == given.tokens["input_ids"].shape
        one, other = score_batch(bank, inputs), score_batch(bank, given)
    torch.testing.assert_close(one.answers, other.answers, atol=1e-4, rtol=1e-4)
    assert [part.answers.shape for part in one.split([3, 5])] == [part.answers.shape for part in other.split([3, 5])]


def test_what_must_not_be_packed_is_not(monkeypatch):
    bank, items = causal_bank(monkeypatch, "llama"), items_of(LENGTHS)

    def is_packed(names, **more):
        return "position_ids" in score_inputs(bank, items, names, 0, packed_length=20, **more).tokens

    assert is_packed("a")
    bank.add("judge", SPEC, 3, torch.Generator().manual_seed(0))
    bank.add("drops", AdapterSpec(method="lora", rank=4, dropout=0.1), 0, torch.Generator().manual_seed(0))
    assert not is_packed(["judge", *["a"] * 7])
    assert not is_packed("drops")
    assert is_packed(["a", "b"] * 4)
    assert not is_packed([*["a"] * 7, "judge"])
    assert "position_ids" not in score_inputs(bank, items, "a", 0).tokens
    bank.model.config.use_cache = True  # masks would not tell sequences apart
    assert not is_packed("a")
    other = causal_bank(monkeypatch, "opt")
    assert "position_ids" not in score_inputs(other, items, "a", 0, packed_length=20).tokens


def test_packing_keeps_every_token():
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randint(1, 20) for _ in range(draw.randint(1, 30))]
        names, most = [draw.choice("ab") for _ in lengths], draw.randint(1, 60)
        packing = pack_sequences(lengths, names, max(lengths), most, 0.0)
        if packing is None:  # nothing fits together
            continue
        assert packing.rows < len(lengths)
        assert packing.rows * packing.length <= len(lengths) * max(lengths)
        assert max(lengths) <= packing.length <= max(most, max(lengths))
        taken = {(row, first + i) for (row, first), n in zip(packing.places, lengths, strict=True) for i in range(n)}
        assert len(taken) == sum(lengths)
        assert max(token for _, token in taken) == packing.length - 1
        of_rows = set(enumerate(packing.names(names)))
        assert {(row, name) for (row, _), name in zip(packing.places, names, strict=True)} == of_rows
        batch = packing.collate([{"input_ids": [n] * n} for n in lengths], 0, "cpu")
        for (row, first), n in zip(packing.places, lengths, strict=True):
            assert batch["input_ids"][row, first : first + n].tolist() == [n] * n
            assert batch["position_ids"][row, first : first + n].tolist() == list(range(n))
        assert batch["position_ids"].diff(dim=1).ne(1).sum() <= len(lengths)  # and nowhere else does one begin


def test_rows_are_as_long_as_saves_most():
    def packed(lengths, most, **more):
        found = pack_sequences(lengths, ["a"] * len(lengths), max(lengths), most, **more)
        return found and (found.rows, found.length)

    assert packed([60, 70, 80, 100], 1000) == (1, 310)
    assert packed([60, 70, 80, 100], 200) == (2, 170)
    assert packed([60, 70, 80, 100], 100) is None  # no two of them fit
    assert packed([10, 20, 30, 40, 100], 100) == (2, 100)
    assert packed([95, 98, 99, 100], 1000) is None  # a fiftieth is not worth a mask
    assert packed([95, 98, 99, 100], 1000, least_saved=0.01) == (1, 392)
    assert packed([8000] * 2 + [16000] * 4, 16000) is None  # its mask would take a gigabyte
