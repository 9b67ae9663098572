"""Several experts that train together give the same results as each alone, and fail independently."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_loop import InMemory

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Item, pad_id_of
from workers.data.prepared import load_split
from workers.failure import Failure
from workers.training import gradients
from workers.training.batches import TokenizedRows, tokenize
from workers.training.loop import fit_experts
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining, FitResult, TrainingState

QUICK = TrainSettings(steps=24, batch_size=8, eval_every=8, seed=0, lr=1e-2, head_lr=1e-2, head_dropout=0.0)
SPECS = {
    "colours": AdapterSpec(rank=4, alpha=8.0),
    "animals": AdapterSpec(method="lora", rank=2, alpha=4.0, targets=("k", "o")),
    "upper": AdapterSpec(rank=4, alpha=8.0, first_layer=1),
}
SETTINGS = {
    "colours": QUICK,
    "animals": QUICK.model_copy(update={"steps": 13, "batch_size": 5, "seed": 3, "eval_every": 4}),
    "upper": QUICK.model_copy(update={"steps": 20, "seed": 1}),
}


class Class:
    """Experts on one bank, the rows of each, and what was reported."""

    def __init__(self, base, colours, animals, names):
        self.bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
        self.pad_id, self.reports = pad_id_of(tokenizer), []
        self.trainings = {}
        for name in names:
            data, draw = (animals if name == "animals" else colours), torch.Generator().manual_seed(len(name))
            rows = [tokenize(tokenizer, load_split(data, s), base.max_length) for s in ("train", "validation")]
            self.bank.add(name, SPECS[name], len(data.label_names), draw)
            self.trainings[name] = ExpertTraining(name, *rows, SETTINGS[name], "trained")

    def take(self, progress):
        """Keep reports of steps; a report without metrics is a heartbeat during an evaluation."""
        if progress.metrics:
            self.reports.append(progress)

    def fit(self):
        return fit_experts(self.bank, list(self.trainings.values()), pad_id=self.pad_id, report=self.take)

    def losses(self, name):
        return torch.tensor([r.metrics["train.loss"] for r in self.reports if r.key == name])

    def weights(self, name):
        return {key: value.clone() for key, value in self.bank.expert(name).state_dict().items()}


@pytest.fixture
def together(base, colours, animals):
    return lambda *names: Class(base, colours, animals, names)


def close(one, other, names):
    for name in names:
        torch.testing.assert_close(one.losses(name), other[name].losses(name), rtol=1e-4, atol=1e-5)
        mine, theirs = one.weights(name), other[name].weights(name)
        assert all(torch.allclose(mine[key], theirs[key], atol=2e-4) for key in mine)


def test_three_together_are_each_alone(together):
    """Of other forms, rows, seeds, numbers of steps and trunks."""
    group, alone = together(*SPECS), {name: together(name) for name in SPECS}
    found = group.fit()
    for name, one in alone.items():
        expected = one.fit()[name]
        assert isinstance(found[name], FitResult)
        assert found[name].steps == expected.steps == SETTINGS[name].steps
        assert found[name].best == pytest.approx(expected.best, abs=1e-4)
        assert [r.step for r in group.reports if r.key == name] == list(range(1, expected.steps + 1))
    close(group, alone, SPECS)


def test_they_share_a_pass_but_not_over_different_trunks(together, monkeypatch):
    seen, honest = [], gradients.score_inputs

    def watched(bank, items, names, *args, depth, **more):
        seen.append((names if isinstance(names, str) else tuple(dict.fromkeys(names)), len(items), depth))
        return honest(bank, items, names, *args, depth=depth, **more)

    monkeypatch.setattr(gradients, "score_inputs", watched)
    together(*SPECS).fit()
    assert seen[:2] == [(("colours", "animals"), 13, 0), ("upper", 8, 1)]
    assert seen[-1] == ("colours", 8, 0)


@pytest.mark.parametrize("micro", [3, 16])
def test_micro_batches_of_several(together, monkeypatch, micro):
    sizes, honest = [], gradients.score_inputs

    def counted(bank, items, *args, **more):
        sizes.append(len(items))
        return honest(bank, items, *args, **more)

    group, alone = together("colours", "animals"), {name: together(name) for name in ("colours", "animals")}
    for one in alone.values():
        one.fit()
    monkeypatch.setattr(gradients, "score_inputs", counted)
    training = group.trainings["colours"]  # the one with the more steps
    settings = training.settings.model_copy(update={"micro_batch": micro})
    group.trainings["colours"] = replace(training, settings=settings)
    group.fit()
    assert max(sizes) <= micro
    close(group, alone, alone)


def test_states_of_several_are_padded_to_one_another(together):
    kept, alone = together("upper"), {"upper": together("upper")}
    training = kept.trainings["upper"]
    training = replace(training, train=replace(training.train, states=InMemory(kept.bank, training.train, kept.pad_id)))
    kept.bank.add("second", SPECS["upper"], 3, torch.Generator().manual_seed(9))
    # The second's rows are those of the first in another order, so that lengths differ in every step.
    kept.trainings = {
        "upper": training,
        "second": replace(training, name="second", settings=training.settings.model_copy(update={"seed": 7})),
    }
    kept.fit()
    alone["upper"].fit()
    close(kept, alone, ["upper"])


def test_a_loss_that_is_no_number_stops_one_alone(together):
    group, alone = together("colours", "animals"), {"colours": together("colours")}
    with torch.no_grad():
        group.bank.expert("animals").head.bias.fill_(torch.nan)
    found = group.fit()
    assert isinstance(found["animals"], Failure)
    assert (found["animals"].kind, found["animals"].error) == ("code", "DivergedError")
    alone["colours"].fit()
    close(group, alone, ["colours"])
    assert not [r for r in group.reports if r.key == "animals"]


def test_an_optimizer_that_fails_in_its_first_step_stops_one_alone(together, monkeypatch):
    group, alone = together("colours", "animals"), {"colours": together("colours")}
    apply = TrainingState.apply

    def failing(state, rates):
        if state.training.name == "animals":
            raise ValueError("no step")
        apply(state, rates)

    monkeypatch.setattr(TrainingState, "apply", failing)
    found = group.fit()
    assert (found["animals"].kind, found["animals"].message) == ("code", "no step")
    monkeypatch.undo()
    alone["colours"].fit()
    close(group, alone, ["colours"])


def broken(rows, what):
    if what == "label":
        return TokenizedRows(rows.items, [99] * len(rows))
    if what == "token":
        return TokenizedRows([Item({"input_ids": [10_000_000] * 3})] * len(rows), rows.labels)
    if what == "none":
        return TokenizedRows([], [])

    class Unreadable:
        depth = 1

        def gather(self, sequences, device):
            raise ValueError("cannot be read")

    return replace(rows, states=Unreadable())


@pytest.mark.parametrize("what", ["label", "token", "none", "states"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_that_cannot_be_used_stop_one_alone(together, what, split):
    group, alone = together("colours", "animals"), {"colours": together("colours")}
    training = group.trainings["animals"]
    group.trainings["animals"] = replace(training, **{split: broken(getattr(training, split), what)})
    found = group.fit()
    assert isinstance(found["animals"], Failure)
    assert found["animals"].trace
    assert isinstance(found["colours"], FitResult)
    alone["colours"].fit()
    close(group, alone, ["colours"])


@pytest.mark.parametrize("error", [MemoryError("all gone"), OSError(5, "Input/output error")])
def test_what_goes_wrong_around_them_is_raised(together, monkeypatch, error):
    def failing(*args, **more):
        raise error

    monkeypatch.setattr(gradients, "score_inputs", failing)
    group = together("colours", "animals")
    with pytest.raises(type(error)):
        group.fit()
    assert not group.bank.training
