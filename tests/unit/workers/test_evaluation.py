import math

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Item, pad_id_of
from ttmoe.scoring import score
from workers.data.prepared import load_split
from workers.training import evaluation
from workers.training.batches import TokenizedRows, tokenize
from workers.training.evaluation import evaluate, expert_scores


@pytest.fixture(scope="module")
def bench(base, colours):
    """A bank whose expert answers at random, rows and the pad id."""
    bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
    expert = bank.add("x", AdapterSpec(init="paper", rank=4), 3, torch.Generator().manual_seed(0), random_head=True)
    torch.nn.init.normal_(expert.head.bias)
    return bank, tokenize(tokenizer, load_split(colours, "test"), base.max_length), pad_id_of(tokenizer)


def test_scores_do_not_depend_on_the_batch(bench):
    bank, rows, pad_id = bench
    with torch.no_grad():
        one = [score(bank.eval(), [item], "x", pad_id)[0] for item in rows.items]
    for other in (expert_scores(bank, "x", rows, pad_id, tokens) for tokens in (1, 40, 10_000, None)):
        assert len(other) == len(rows)
        assert torch.allclose(torch.stack(one), torch.stack(other), atol=1e-5)
    assert torch.stack(one).std(0).min() > 1e-3  # rows do differ: another order would show


def test_accuracy_and_loss_are_those_of_the_scores(bench):
    bank, rows, pad_id = bench
    scores = torch.stack(expert_scores(bank.eval(), "x", rows, pad_id))
    labels = torch.tensor(rows.labels)
    found = evaluate(bank, "x", rows, pad_id)
    assert found["accuracy"] == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(scores, labels).item(), abs=1e-5)
    perfect = TokenizedRows(rows.items, scores.argmax(1).tolist())
    assert evaluate(bank, "x", perfect, pad_id)["accuracy"] == 1.0
    assert math.isfinite(found["loss"])


@pytest.mark.parametrize("training", [True, False])
def test_the_bank_stays_in_its_mode_and_gets_no_gradient(bench, training):
    bank, rows, pad_id = bench
    bank.train(training)
    evaluate(bank, "x", rows, pad_id)
    assert bank.training == training
    assert not expert_scores(bank, "x", TokenizedRows(rows.items[:2], rows.labels[:2]), pad_id)[0].requires_grad


def test_rows_with_different_numbers_of_options(bench):
    bank, rows, pad_id = bench
    bank.add("which", AdapterSpec(init="paper", rank=4), 1, torch.Generator().manual_seed(0), random_head=True)
    whole = [item.whole for item in rows.items]
    items = [Item(whole[0], tuple(whole[i : i + 2 + i % 3])) for i in range(12)]
    scores = [score(bank.eval(), [item], "which", pad_id)[0].detach() for item in items]
    labels = [int(s.argmax()) for s in scores]
    labels[0] = 1 - labels[0]
    found = evaluate(bank, "which", TokenizedRows(items, labels), pad_id)
    bank.remove("which")
    assert {len(s) for s in scores} == {2, 3, 4}
    assert found["accuracy"] == pytest.approx(11 / 12)
    losses = [-s.log_softmax(0)[label] for s, label in zip(scores, labels, strict=True)]
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_batches_are_bounded_by_padded_tokens(bench, monkeypatch):
    bank, rows, pad_id = bench
    sizes, honest = [], evaluation.score

    def counted(bank, items, *args, **more):
        sizes.append(len(items) * max(item.length for item in items))
        return honest(bank, items, *args, **more)

    monkeypatch.setattr(evaluation, "score", counted)
    expert_scores(bank, "x", rows, pad_id, 64)
    assert max(sizes) <= 64 < 1.5 * min(sizes[:-1])


def test_the_callback_is_called_after_each_batch(bench):
    bank, rows, pad_id = bench
    calls = []
    expert_scores(bank, "x", rows, pad_id, 64, on_batch=lambda: calls.append(1))
    assert len(calls) > len(rows) * min(rows.lengths) / 64
