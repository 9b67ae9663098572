"""Each row of a batch is dropped at the rate of its own expert, and by its own key."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, KINDS, OTHERS, batch, stir, tiny_bank, tiny_model

from ttmoe.adapter import AdapterSpec
from ttmoe.base import Base, load_body
from ttmoe.layer import Update, apply_update
from ttmoe.row_dropout import dropout_by_row, dropout_keys, keys_at

RATES = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)


def identity_update(rates, rows):
    """One expert for each rate, whose update is the identity."""
    eye = torch.eye(8).expand(3, 8, 8)
    return Update(eye, eye, rows, rates)


def test_rows_are_dropped_at_their_own_rate_and_keep_their_mean():
    torch.manual_seed(0)
    rows = torch.tensor([0, 1, 2, 1, 0])
    y = apply_update(torch.ones(5, 4000, 8), identity_update(RATES, rows), training=True)
    for i, row in enumerate(rows):
        rate = RATES[row].item()
        assert (y[i] == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
        assert y[i].max().item() == pytest.approx(1 / (1 - rate), rel=1e-5)
        assert y[i].mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(y[0], torch.ones(4000, 8))


def test_each_expert_alone_has_its_rate():
    torch.manual_seed(0)
    update = identity_update(RATES, torch.tensor([0, 1, 2]))
    for i, rate in enumerate(RATES.tolist()):
        y = apply_update(torch.ones(2, 4000, 8), update.select(i), training=True)
        assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.02)


def test_flattened_rows_keep_their_rate():
    torch.manual_seed(0)
    y = apply_update(torch.ones(2 * 4000, 8), identity_update(RATES, torch.tensor([2, 0])), training=True)
    assert (y[:4000] == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)
    assert y[4000:].eq(1).all()


@pytest.mark.parametrize("rates", [RATES, 0.5])
def test_no_dropout_outside_training(rates):
    y = apply_update(torch.ones(3, 5, 8), identity_update(rates, torch.tensor([0, 1, 2])), training=False)
    assert y.eq(1).all()


def test_the_bank_passes_the_rates_on_and_adds_experts_in_the_mode_of_the_base():
    bank, inputs = tiny_bank(), batch()
    for name, rate in (("never", 0.0), ("half", 0.5)):
        stir(bank.add(name, AdapterSpec(rank=2, dropout=rate), 2, torch.Generator()))
    names = ["never", "half"] * 3
    with torch.no_grad():
        without = bank.features(inputs, names)  # the base is in eval mode, and so are the adapted layers
        assert torch.equal(bank.features(inputs, names), without)
        bank.train()
        torch.manual_seed(1)
        with_dropout = bank.features(inputs, names)
    torch.testing.assert_close(with_dropout[::2], without[::2], rtol=1e-6, atol=1e-6)
    assert (with_dropout[1::2] - without[1::2]).abs().amax(1).min() > 1e-3


def test_heads_drop_at_their_own_rate():
    bank = tiny_bank()
    for i, name in enumerate(("never", "half")):
        stir(bank.add(name, AdapterSpec(rank=2), 2, torch.Generator()), seed=i).head.dropout = 0.5 * i
    names = ["never", "half"] * 3
    with torch.no_grad():
        without = bank(batch(), names)
        assert torch.equal(bank(batch(), names), without)
        bank.train()
        torch.manual_seed(1)
        with_dropout = bank(batch(), names)
    torch.testing.assert_close(with_dropout[::2], without[::2], rtol=1e-6, atol=1e-6)
    assert (with_dropout[1::2] - without[1::2]).abs().amax(1).min() > 1e-3


def test_an_input_shared_between_rows_is_refused():
    with pytest.raises(ValueError, match="an adapted layer received 1 rows for a batch of 3"):
        apply_update(torch.ones(1, 9, 8), identity_update(0.0, torch.tensor([0, 1, 2])), training=False)


def masks(keys, tokens=50, width=64, rate=0.5):
    """What is kept of rows with these keys: 1, what is dropped: 0."""
    return dropout_by_row(torch.ones(len(keys), tokens, width), rate, keys).sign()


def test_the_mask_is_the_one_that_experts_were_trained_with():
    """Another hash trains other experts: it needs another recipe number."""
    keys = dropout_keys(7, 3, [0, 5])
    kept = dropout_by_row(torch.ones(2, 2, 9), torch.tensor([0.5, 0.2], dtype=torch.float64), keys).sign().int()
    assert ["".join(map(str, token)) for token in kept.flatten(0, 1).tolist()] == [
        "101110101", "111001010", "111111011", "110100111"]  # fmt: skip


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_rate_is_right_within_the_error_of_sampling(rate):
    kept = masks(dropout_keys(0, 0, range(200)), rate=rate)
    for part in (kept, *kept):
        assert abs(part.mean().item() - (1 - rate)) < 5 * (rate * (1 - rate) / part.numel()) ** 0.5


def most_correlated(kept):
    """The largest correlation between two of the rows, in standard errors."""
    centred = kept - kept.mean(1, keepdim=True)
    centred = centred / centred.norm(dim=1, keepdim=True)
    return ((centred @ centred.mT).fill_diagonal_(0).abs().max() * kept.shape[1] ** 0.5).item()


def test_no_two_masks_are_correlated():
    """Of rows, tokens, columns, steps, seeds and sites: of 100,000 normal correlations the largest is 4.5 or so."""
    one = masks(dropout_keys(0, 0, range(400)), tokens=40, width=64)
    of_steps = torch.cat([masks(dropout_keys(0, step, [0])) for step in range(400)])
    of_seeds = torch.cat([masks(dropout_keys(seed, 0, [0])) for seed in range(400)])
    of_sites = masks(keys_at([f"layers.{i}.q_proj q" for i in range(400)], dropout_keys(0, 0, [0]))[:, 0])
    for kept in (one, one.transpose(0, 1), one.transpose(0, 2), of_steps, of_seeds, of_sites):
        assert most_correlated(kept.reshape(len(kept), -1)) < 6
    # Two masks that are shifted against each other are another matter than two at the same place.
    flat = one.flatten() - 0.5
    for shift in range(1, 200):
        assert abs((flat[:-shift] * flat[shift:]).mean().item()) * 4 * len(flat) ** 0.5 < 6


def test_a_mask_depends_on_neither_padding_nor_the_rows_beside_it():
    keys = dropout_keys(1, 2, range(6))
    whole = masks(keys)
    assert torch.equal(masks(keys, tokens=20), whole[:, :20])
    assert torch.equal(masks(keys[[4, 1]]), whole[[4, 1]])
    assert torch.equal(masks(dropout_keys(1, 2, [4, 1])), whole[[4, 1]])
    assert torch.equal(masks(keys, width=63), whole[..., :63])
    assert torch.equal(dropout_by_row(torch.ones(6, 64), 0.5, keys).sign(), whole[:, 0])


SPECS = {"one": AdapterSpec(rank=2, targets=("q", "k", "v", "o"), dropout=0.3),
         "two": AdapterSpec(rank=3, targets=("q", "k", "down"), dropout=0.1),
         "none": AdapterSpec(rank=2, targets=("v",), first_layer=1)}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_rows_score_alone_as_in_any_batch(name):
    """In training: by expert, and in micro-batches."""
    bank, inputs, names = tiny_bank(name), batch(), ["two", "one", "one", "none", "two", "one"]
    for i, (expert, spec) in enumerate(SPECS.items()):
        stir(bank.add(expert, spec, 3, torch.Generator()), seed=i).head.dropout = 0.2 * i
    bank.train()
    own = {expert: [i for i, each in enumerate(names) if each == expert] for expert in SPECS}
    keys_of = {expert: dropout_keys(3, 8, range(len(rows))) for expert, rows in own.items()}
    keys = torch.stack([keys_of[each][own[each].index(i)] for i, each in enumerate(names)])
    mixed = bank(inputs, names, dropout_keys=keys)
    for expert, rows in own.items():
        for size in (1, 2, 3):
            for at in range(0, len(rows), size):
                part = rows[at : at + size]
                tokens = inputs["attention_mask"][part].sum(1).max()
                alone = bank({key: value[part, :tokens] for key, value in inputs.items()}, expert,
                             dropout_keys=keys_of[expert][at : at + size])  # fmt: skip
                torch.testing.assert_close(alone, mixed[part], rtol=1e-4, atol=1e-5)
    assert (bank.eval()(inputs, names) - mixed).abs().max() > 1e-2  # there is dropout


def test_without_keys_each_pass_draws_anew():
    bank = tiny_bank()
    stir(bank.add("one", SPECS["one"], 3, torch.Generator())).head.dropout = 0.5
    first, second = (bank.train()(batch(), "one") for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
@torch.no_grad()
def test_a_base_is_loaded_without_its_dropout(name, tmp_path):
    """It would draw over the whole batch."""
    model = tiny_model(name)
    rates = [key for key, value in vars(model.config).items() if "drop" in key and isinstance(value, float)]
    for key in rates:
        setattr(model.config, key, 0.4)
    model.save_pretrained(tmp_path)
    loaded = load_body(Base("folder", name, "", "", str(tmp_path), "float32", 16, "mean")).train()
    first, second = (loaded(**batch()).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
