"""The training loop on a base that takes a second to train on."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import islice

import pytest
import tiny
import torch
from torch.nn import functional as F

from ttmoe import activation_checkpointing
from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import collate, pad_id_of, pool
from ttmoe.row_dropout import dropout_keys
from ttmoe.scoring import BatchScores
from workers.data.examples import Example
from workers.data.prepared import load_split
from workers.training import gradients, session
from workers.training.batches import tokenize, training_batches
from workers.training.evaluation import evaluate
from workers.training.expert_loss import expert_loss
from workers.training.loop import TrainingFailedError, fit_expert
from workers.training.optimizer import learning_rate_factor
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining

SPEC = AdapterSpec(rank=4, alpha=8.0)
QUICK = TrainSettings(steps=60, batch_size=16, eval_every=20, seed=0, lr=1e-2, head_lr=1e-2)


class Bench:
    """A fresh bank with one untrained expert ``x``, and a task's rows."""

    def __init__(self, base, examples, classes, *, seed=0, head="trained", spec=SPEC):
        self.bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
        self.pad_id, self.head = pad_id_of(tokenizer), head
        self.rows = {split: tokenize(tokenizer, rows, base.max_length) for split, rows in examples.items()}
        self.reports = []
        draw = torch.Generator().manual_seed(seed)
        self.expert = self.bank.add("x", spec, classes, draw, random_head=head == "frozen")

    def take(self, progress):
        """Keep reports of steps; a report without metrics is a heartbeat during an evaluation."""
        if progress.metrics:
            self.reports.append(progress)

    def fit(self, settings=QUICK):
        return fit_expert(self.bank, self.training(settings), pad_id=self.pad_id, report=self.take)

    def training(self, settings=QUICK):
        return ExpertTraining("x", self.rows["train"], self.rows["validation"], settings, self.head)

    @property
    def losses(self):
        return [report.metrics["train.loss"] for report in self.reports]

    def accuracy(self, split="test"):
        return evaluate(self.bank, "x", self.rows[split], self.pad_id)["accuracy"]


@pytest.fixture(scope="module")
def text(colours):
    return {split: load_split(colours, split) for split in ("train", "validation", "test")}


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns_a_task_and_leaves_the_base_alone(base, text):
    bench = Bench(base, text, 3)
    before, cores = state(load_body(base)), state(bench.expert.adapter)
    assert bench.accuracy() < 0.6
    result = bench.fit()
    assert bench.accuracy() > 0.95
    after = {key.replace(".inner.", "."): value for key, value in bench.bank.model.state_dict().items()}
    assert same(before, after)
    assert not same(cores, state(bench.expert.adapter))
    assert not bench.bank.training
    assert result.steps == 60
    assert result.best == evaluate(bench.bank, "x", bench.rows["validation"], bench.pad_id)


def test_the_adapter_alone_learns_under_a_frozen_head(base, text):
    bench = Bench(base, text, 3, head="frozen")
    head = {name: value.clone() for name, value in bench.expert.head.named_parameters()}
    bench.fit(QUICK.model_copy(update={"steps": 100, "lr": 2e-2}))
    assert same(head, dict(bench.expert.head.named_parameters()))
    assert head["weight"].abs().max() > 0
    assert bench.accuracy() > 0.95


def test_the_same_seed_gives_the_same_bits_and_another_does_not(base, text):
    spec = AdapterSpec(rank=4, alpha=8.0, dropout=0.1)  # which draws random numbers in every step
    settings = QUICK.model_copy(update={"steps": 15})
    trained = []
    for seed in (0, 0, 1):
        torch.rand(7)  # what was drawn before must not matter
        bench = Bench(base, text, 3, spec=spec)
        bench.fit(settings.model_copy(update={"seed": seed}))
        trained.append((state(bench.expert), bench.losses))
    assert same(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]
    assert not same(trained[0][0], trained[2][0])
    assert trained[0][1] != trained[2][1]


def test_pairs_are_trained(base, text):
    other = [first for first, _ in tiny.sentences(200, tiny.ANIMALS, "south")]
    pairs = {
        split: [Example((first, e.texts[0]), (), e.label, "") for first, e in zip(other, rows, strict=False)]
        for split, rows in text.items()
    }  # the label is decided by the second text alone
    bench = Bench(base, pairs, 3)
    bench.fit(QUICK.model_copy(update={"steps": 200}))
    assert bench.accuracy() > 0.95


def test_choices_are_trained_whatever_their_number_of_options(base):
    draw = random.Random(0)
    right, wrong = ([t for t, _ in tiny.sentences(200, [word], "north")] for word in ("red", "blue"))

    def example():
        options = draw.sample(wrong, draw.randint(2, 4))
        label = draw.randrange(len(options))
        options[label] = draw.choice(right)
        return Example(("north0",), tuple(options), label, "")

    examples = {split: [example() for _ in range(n)] for split, n in (("train", 150), ("validation", 40), ("test", 60))}
    bench = Bench(base, examples, 1)
    bench.fit(QUICK.model_copy(update={"steps": 100}))
    assert bench.accuracy() > 0.95


def test_it_stops_early_and_keeps_the_best_weights(base, text, monkeypatch):
    """Evaluations are scripted: the third is best, by its loss; after three that are no better it must stop."""
    script = iter([(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.6, 0.1), (0.7, 0.8), (0.7, 0.85), (0.9, 0.1)])
    met = []

    def scripted(bank, name, rows, pad_id, on_batch, engine):
        met.append(state(bank.experts[name]))
        accuracy, loss = next(script)
        return {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr(session, "evaluate", scripted)
    bench = Bench(base, text, 3)
    result = bench.fit(QUICK.model_copy(update={"steps": 100, "eval_every": 5, "patience": 3}))
    assert (result.steps, result.best_step, result.best) == (30, 15, {"accuracy": 0.7, "loss": 0.8})
    assert len(met) == 6
    assert same(state(bench.expert), met[2])
    assert not same(met[2], met[5])


def test_evaluations_use_a_part_of_the_rows_and_the_final_figure_all(base, text, monkeypatch):
    bench, honest, seen = Bench(base, text, 3), session.evaluate, []

    def count(bank, name, rows, *rest):
        seen.append(rows.labels)
        return honest(bank, name, rows, *rest)

    monkeypatch.setattr(session, "evaluate", count)
    result = bench.fit(QUICK.model_copy(update={"validation_rows": 10}))
    labels = bench.rows["validation"].labels
    assert seen == [labels[:10]] * 3 + [labels]
    assert result.best == evaluate(bench.bank, "x", bench.rows["validation"], bench.pad_id)


def test_without_patience_it_never_stops_and_the_last_step_is_measured(base, text, monkeypatch):
    monkeypatch.setattr(session, "evaluate", lambda *_: {"accuracy": 0.5, "loss": 1.0})
    bench = Bench(base, text, 3)
    result = bench.fit(QUICK.model_copy(update={"steps": 11, "eval_every": 3, "patience": 0}))
    measured = [r.step for r in bench.reports if "validation.accuracy" in r.metrics]
    assert (result.steps, measured) == (11, [3, 6, 9, 11])


def test_every_step_is_reported(base, text):
    bench = Bench(base, text, 3)
    bench.fit(QUICK.model_copy(update={"steps": 10}))
    assert [(r.state, r.step, r.steps) for r in bench.reports] == [("training", i, 10) for i in range(1, 11)]
    assert bench.reports[-1].left == 0
    assert all(r.left > 0 for r in bench.reports[:-1])


def test_a_loss_that_is_no_number_stops_it(base, text):
    bench = Bench(base, text, 3)
    torch.nn.init.constant_(bench.expert.head.bias, math.nan)
    with pytest.raises(TrainingFailedError, match=r"'x' is nan at step 1: lower train.lr \(now 0.01\)") as caught:
        bench.fit()
    assert caught.value.failure.error == "DivergedError"
    assert bench.reports == []
    assert all(torch.isfinite(p).all() for p in bench.expert.adapter.parameters())


def test_clipping_bounds_the_gradients(base, text, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, most: seen.append((len(list(p)), most)))
    bench = Bench(base, text, 3)
    bench.fit(QUICK.model_copy(update={"steps": 2, "clip": 0.5}))
    assert seen == [(len(list(bench.expert.parameters())), 0.5)] * 2
    bench.fit(QUICK.model_copy(update={"steps": 2, "clip": 0.0}))
    assert len(seen) == 2


def plain_loop(bench, settings):
    """Train with a plain loop and return the losses; the expert keeps the weights of the last step."""
    bank, expert, rows = bench.bank, bench.expert, bench.rows["train"]
    expert.head.dropout = settings.head_dropout
    bank.eval()
    with torch.no_grad():
        states = []
        for start in range(0, min(256, len(rows)), 64):
            inputs = collate([item.whole for item in rows.items[:256][start : start + 64]], bench.pad_id)
            states.append(pool(bank.model(**inputs).last_hidden_state, inputs["attention_mask"], bank.pooling))
        expert.head.fit_scale(torch.cat(states))
    groups = [{"params": list(expert.adapter.parameters()), "lr": settings.lr},
              {"params": list(expert.head.parameters()), "lr": settings.head_lr}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    bank.train()
    losses = []
    batches = islice(training_batches(rows, settings.batch_size, settings.seed), settings.steps)
    for step, batch in enumerate(batches):
        keys = dropout_keys(settings.seed, step, batch)
        scores = bank(collate([rows.items[i].whole for i in batch], bench.pad_id), "x", dropout_keys=keys)
        loss = F.cross_entropy(scores, torch.tensor([rows.labels[i] for i in batch]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expert.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("first", [0, 1])
def test_one_expert_is_trained_as_by_a_plain_loop_to_the_last_bit(base, text, first):
    spec = AdapterSpec(rank=4, alpha=8.0, dropout=0.1, first_layer=first)
    settings = QUICK.model_copy(update={"steps": 25, "eval_every": 25, "weight_decay": 0.1})
    bench, plain = Bench(base, text, 3, spec=spec), Bench(base, text, 3, spec=spec)
    bench.fit(settings)
    assert bench.losses == plain_loop(plain, settings)
    assert same(state(bench.expert), state(plain.expert))


def test_micro_batches_add_up_to_the_gradient_of_the_whole(base, text):
    settings = QUICK.model_copy(update={"steps": 12, "head_dropout": 0.0})
    runs = []
    for micro in (None, 5, 1):  # 5 does not divide 16
        bench = Bench(base, text, 3)
        bench.fit(settings.model_copy(update={"micro_batch": micro}))
        runs.append((torch.tensor(bench.losses), state(bench.expert)))
    for losses, weights in runs[1:]:
        torch.testing.assert_close(losses, runs[0][0], rtol=1e-5, atol=1e-5)
        assert all(torch.allclose(weights[key], runs[0][1][key], atol=1e-4) for key in weights)


def test_micro_batches_bound_the_rows_that_go_through_the_model(base, text, monkeypatch):
    sizes, honest = [], gradients.score_inputs

    def counted(bank, items, *args, **more):
        sizes.append(len(items))
        return honest(bank, items, *args, **more)

    monkeypatch.setattr(gradients, "score_inputs", counted)
    bench = Bench(base, text, 3)
    bench.fit(QUICK.model_copy(update={"steps": 2, "micro_batch": 6}))
    assert sizes == [6, 6, 4] * 2


@pytest.mark.parametrize("first", [0, 1])
def test_recomputed_layers_change_nothing_and_are_off_afterwards(base, text, monkeypatch, first):
    spec = AdapterSpec(rank=4, alpha=8.0, dropout=0.1, first_layer=first)
    seen, honest = [], activation_checkpointing._RestoringCheckpoint.__call__

    def counted(*args, **more):
        seen.append(1)
        return honest(*args, **more)

    monkeypatch.setattr(activation_checkpointing._RestoringCheckpoint, "__call__", counted)
    runs = []
    for wanted in (False, True):
        bench = Bench(base, text, 3, spec=spec)
        bench.fit(QUICK.model_copy(update={"steps": 8, "checkpointing": wanted}))
        runs.append((bench.losses, state(bench.expert)))
        assert bool(seen) == wanted
        assert not any(getattr(part, "gradient_checkpointing", False) for part in bench.bank.model.modules())
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


def test_tokens_are_counted(base, text):
    bench, settings = Bench(base, text, 3), QUICK.model_copy(update={"steps": 9})
    found, rows = bench.fit(settings), bench.rows["train"]
    batches = list(islice(training_batches(rows, 16, 0), 9))
    real = sum(rows.lengths[i] for batch in batches for i in batch)
    processed = sum(len(batch) * max(rows.lengths[i] for i in batch) for batch in batches)
    assert found.tokens == [real, processed]
    assert found.metrics()["tokens.real_share"] == real / processed > 0.85
    assert found.metrics()["tokens.per_second"] == pytest.approx(real / found.seconds)


def test_batches_by_tokens_train_too(base, text):
    bench = Bench(base, text, 3)
    bench.fit(QUICK.model_copy(update={"batch_tokens": 90}))
    assert bench.accuracy() > 0.95


class InMemory:
    """Trunk states in memory."""

    def __init__(self, bank, rows, pad_id, depth=1):
        self.depth, self.asked = depth, 0
        self.kept = []
        for item in rows.items:
            for tokens in item.options or (item.whole,):
                self.kept.append(bank.trunk(depth).states(collate([tokens], pad_id))[0])

    def gather(self, sequences, device):
        self.asked += len(sequences)
        return torch.nn.utils.rnn.pad_sequence([self.kept[i] for i in sequences], batch_first=True)


UPPER = AdapterSpec(rank=4, alpha=8.0, first_layer=1)


def test_kept_trunk_states_give_the_losses_of_recomputed_ones(base, text):
    runs = []
    for kept in (False, True):
        bench = Bench(base, text, 3, spec=UPPER)
        if kept:
            bench.rows = {split: replace(rows, states=InMemory(bench.bank, rows, bench.pad_id))
                          for split, rows in bench.rows.items()}  # fmt: skip
        found = bench.fit(QUICK.model_copy(update={"steps": 20}))
        runs.append((torch.tensor(bench.losses), found.best, bench.accuracy()))
    taken = islice(training_batches(bench.rows["train"], 16, 0), 20)
    assert bench.rows["train"].states.asked == sum(map(len, taken))
    assert bench.rows["validation"].states.asked == len(bench.rows["validation"])
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=0, atol=1e-6)
    assert runs[1][1] == pytest.approx(runs[0][1], abs=1e-6)
    assert runs[1][2] == runs[0][2]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("linear", {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 40: 0.75, 55: 0.5, 70: 0.25, 100: 0.0}),
        ("constant", {0: 0.1, 9: 1.0, 50: 1.0, 99: 1.0}),
    ],
)
def test_the_learning_rate_at_known_steps(schedule, values):
    settings = TrainSettings(steps=100, warmup=0.1, schedule=schedule)
    assert {step: learning_rate_factor(step, settings) for step in values} == pytest.approx(values)


def test_without_warmup_the_first_step_is_a_full_one():
    assert learning_rate_factor(0, TrainSettings(steps=100, warmup=0.0)) == 1.0
    assert learning_rate_factor(0, TrainSettings(steps=1, warmup=0.5)) == 1.0


def test_the_optimizer_follows_schedule_and_both_rates(base, text, monkeypatch):
    rates, taken = [], torch.optim.AdamW.step

    def step(optimizer, *args):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return taken(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    bench = Bench(base, text, 3)
    rise = {"warmup": 0.4, "schedule": "linear"}
    bench.fit(TrainSettings(steps=5, batch_size=8, lr=1e-2, head_lr=1e-3, seed=0, **rise))
    shares = [0.5, 1.0, 1.0, 2 / 3, 1 / 3]
    assert rates == [pytest.approx([share * 1e-2, share * 1e-3]) for share in shares]


def test_the_loss_of_rows_with_different_numbers_of_options():
    rows = [torch.tensor([0.5, -1.0]), torch.tensor([0.1, 2.0, 0.3, -0.4]), torch.tensor([1.5, 2.5, -1.0])]
    scores = torch.cat(rows).unsqueeze(1).requires_grad_()
    targets = torch.tensor([1, 2, 0])
    batch = BatchScores(scores, torch.zeros(0, 2), [1, 1, 1], [2, 4, 3], [0, 0, 0])
    for smoothing in (0.0, 0.1):
        loss = expert_loss(batch, targets, smoothing)
        alone = [F.cross_entropy(part[:, 0], target, label_smoothing=smoothing)
                 for part, target in zip(scores.split([2, 4, 3]), targets, strict=True)]  # fmt: skip
        torch.testing.assert_close(loss, torch.stack(alone).mean())
        torch.testing.assert_close(*(torch.autograd.grad(each, scores)[0] for each in (loss, sum(alone) / 3)))
        even = BatchScores(scores[:6], torch.zeros(0, 2), [1, 1, 1], [2, 2, 2], [0, 0, 0])
        wanted = F.cross_entropy(scores[:6].view(3, 2), targets % 2, label_smoothing=smoothing)
        torch.testing.assert_close(expert_loss(even, targets % 2, smoothing), wanted)
