"""Each row of a batch is dropped at the rate of its own expert."""

from __future__ import annotations

import pytest
import torch
from architectures import batch, stir, tiny_bank

from ttmoe.adapter import AdapterSpec
from ttmoe.layer import Update, apply_update

RATES = torch.tensor([0.0, 0.5, 0.9])


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
