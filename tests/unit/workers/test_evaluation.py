import math

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import pad_id_of
from ttmoe.scoring import score
from workers.batches import Rows, tokenise
from workers.evaluation import evaluate, scores_of
from workers.prepared import load_split


@pytest.fixture(scope="module")
def bench(base, colours):
    """A bank whose expert answers at random, rows and the pad id."""
    bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
    expert = bank.add("x", AdapterSpec(init="paper", rank=4), 3, torch.Generator().manual_seed(0), random_head=True)
    torch.nn.init.normal_(expert.head.bias)
    return bank, tokenise(tokenizer, load_split(colours, "test"), base.max_length), pad_id_of(tokenizer)


def test_scores_do_not_depend_on_the_batch(bench):
    bank, rows, pad_id = bench
    with torch.no_grad():
        one = [score(bank.eval(), [item], "x", pad_id)[0] for item in rows.items]
    for other in (scores_of(bank, "x", rows.items, pad_id, size) for size in (1, 7, 1000)):
        assert len(other) == len(rows)
        assert torch.allclose(torch.stack(one), torch.stack(other), atol=1e-5)
    assert torch.stack(one).std(0).min() > 1e-3  # rows do differ: another order would show


def test_accuracy_and_loss_are_those_of_the_scores(bench):
    bank, rows, pad_id = bench
    scores = torch.stack(scores_of(bank.eval(), "x", rows.items, pad_id))
    labels = torch.tensor(rows.labels)
    found = evaluate(bank, "x", rows, pad_id)
    assert found["accuracy"] == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(scores, labels).item(), abs=1e-5)
    perfect = Rows(rows.items, scores.argmax(1).tolist())
    assert evaluate(bank, "x", perfect, pad_id)["accuracy"] == 1.0
    assert math.isfinite(found["loss"])


@pytest.mark.parametrize("training", [True, False])
def test_the_bank_stays_in_its_mode_and_gets_no_gradient(bench, training):
    bank, rows, pad_id = bench
    bank.train(training)
    evaluate(bank, "x", rows, pad_id)
    assert bank.training == training
    assert not scores_of(bank, "x", rows.items[:2], pad_id)[0].requires_grad
