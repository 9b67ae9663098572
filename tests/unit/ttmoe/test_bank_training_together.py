"""Four experts trained at once in mixed batches equal the four trained alone, from the same seeds."""

from __future__ import annotations

import pytest
import torch
from architectures import batch, stir, tiny_bank
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec

SPECS = {
    "tt": AdapterSpec(rank=3, alpha=2.0, targets=("q", "v")),
    "paper": AdapterSpec(rank=4, alpha=2.0, targets=("q", "down"), init="paper"),
    "lora": AdapterSpec(method="lora", rank=4, alpha=8.0, targets=("k", "o")),
    "upper": AdapterSpec(rank=2, alpha=2.0, targets=("v", "up"), first_layer=1),
}
STEPS, ROWS_EACH = 20, 3
MIXED = list(SPECS) * ROWS_EACH  # row i goes through expert i modulo 4


def bank_of(name, experts):
    bank = tiny_bank(name)
    for expert in experts:
        generator = torch.Generator().manual_seed(list(SPECS).index(expert))
        bank.add(expert, SPECS[expert], 2 + list(SPECS).index(expert), generator, random_head=True)
    return bank.train()


def rows_of(step, expert):
    """An expert's rows of a step, the same in a mixed batch as alone."""
    inputs = batch(rows=len(MIXED), seed=step)
    where = [i for i, name in enumerate(MIXED) if name == expert]
    labels = torch.randint(2, (len(MIXED),), generator=torch.Generator().manual_seed(step))
    return where, {key: value[where] for key, value in inputs.items()}, labels[where]


def train(bank, loss_of):
    optimizer = torch.optim.AdamW(bank.experts.parameters(), lr=5e-3)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_training_four_together_equals_training_each_alone(name):
    together = bank_of(name, SPECS)
    start = {key: value.clone() for key, value in together.experts.state_dict().items()}

    def mixed_loss(step):
        scores, total = together(batch(rows=len(MIXED), seed=step), MIXED), torch.zeros(())
        for expert in SPECS:
            where, _, labels = rows_of(step, expert)
            total = total + F.cross_entropy(scores[where], labels)  # the mean over the expert's own rows, as alone
        return total

    losses, alone_losses = train(together, mixed_loss), []
    for expert in SPECS:
        alone = bank_of(name, [expert])

        def own_loss(step, expert=expert, alone=alone):
            _, inputs, labels = rows_of(step, expert)
            return F.cross_entropy(alone(inputs, expert), labels)

        alone_losses.append(train(alone, own_loss))
        for key, value in alone.experts[expert].state_dict().items():
            mine = together.experts[expert].state_dict()[key]
            torch.testing.assert_close(mine, value, rtol=1e-5, atol=1e-5)
            if "cores" in key:
                assert (value - start[f"{expert}.{key}"]).abs().max() > 1e-2  # it did learn
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone_losses).sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("names", ["aabbcc", "abcabc", "abbbcc"], ids=["in blocks", "in turns", "unequal blocks"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_experts_of_one_form_have_the_gradients_of_each_alone(name, dropout, names):
    """Their factors are built together, though their scales and rates differ."""
    bank, keys = tiny_bank(name), torch.arange(12, dtype=torch.int32).view(6, 2)
    for i, expert in enumerate("abc"):
        spec = AdapterSpec(rank=4, alpha=1.0 + i % 2, dropout=dropout * (1 + i % 2))
        stir(bank.add(expert, spec, 3, torch.Generator().manual_seed(i)), seed=i)
    inputs, weights = batch(rows=6), torch.randn(6, 3, generator=torch.Generator().manual_seed(5))
    bank.train()
    scores = bank(inputs, list(names), dropout_keys=keys)
    (scores * weights).sum().backward()
    together = {key: p.grad.clone() for key, p in bank.experts.named_parameters() if p.requires_grad}
    bank.zero_grad()
    for expert in "abc":
        rows = [i for i, other in enumerate(names) if other == expert]
        own = {key: value[rows] for key, value in inputs.items()}
        alone = bank(own, expert, dropout_keys=keys[rows])
        torch.testing.assert_close(scores[rows], alone)
        (alone * weights[rows]).sum().backward()
    for key, p in bank.experts.named_parameters():
        torch.testing.assert_close(together[key], p.grad, rtol=1e-3, atol=1e-4)
