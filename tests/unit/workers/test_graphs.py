"""Graphs of passes and updates, with a recorder that needs no GPU: it computes again, from the recorded tensors."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_training_together import QUICK, SPECS, Class

from workers.training import graphs as graphs_module
from workers.training import optimizer, session
from workers.training.graphs import EAGER_RUNS, MOST_FLOPS, Graphs, make_graphs, most_tokens
from workers.training.losses import steps_behind

LARGE = 1  # parameters of a base whose passes are all small


class Again:
    """Records nothing but what to compute, and fails where it is told to."""

    def __init__(self, fail_at=None):
        self.recorded, self.replayed, self.fail_at = 0, 0, fail_at

    def record(self, compute):
        if self.recorded == self.fail_at:
            raise RuntimeError("out of memory")
        self.recorded += 1

        def replay():
            self.replayed += 1
            return compute()

        return replay


@pytest.fixture
def together(base, colours, animals):
    return lambda *names: Class(base, colours, animals, names)


def with_graphs(monkeypatch, recorder):
    """Train as on a GPU: with graphs, gradients that stay, fused optimizers, and losses read a step late."""
    monkeypatch.setattr(session, "make_graphs", lambda model, device: Graphs(LARGE, recorder))
    monkeypatch.setattr(session, "steps_behind", lambda device: 1)
    monkeypatch.setattr(optimizer, "is_fused", lambda device: True)
    made = torch.optim.AdamW.__init__

    def make(self, *args, capturable, **more):  # which a CPU's optimizer cannot be
        made(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", make)
    zero = torch.optim.AdamW.zero_grad
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, set_to_none=True: zero(self, set_to_none=False))


@pytest.mark.parametrize("names", [["colours"], ["colours", "animals"], [*SPECS]], ids=["one", "two", "two trunks"])
def test_a_training_with_graphs_is_the_training_without(together, monkeypatch, names):
    """The losses have their steps and come in order though they are read late; rows are padded to fewer lengths."""
    plain, recorder = together(*names), Again()
    plain_fits = plain.fit()
    with_graphs(monkeypatch, recorder)
    graphed = together(*names)
    fits = graphed.fit()
    assert recorder.recorded
    assert recorder.replayed > 3 * recorder.recorded
    for name in names:
        torch.testing.assert_close(graphed.losses(name), plain.losses(name), rtol=1e-3, atol=1e-4)
        steps = [report.step for report in graphed.reports if report.key == name]
        assert steps == [report.step for report in plain.reports if report.key == name]
        mine, wanted = graphed.weights(name), plain.weights(name)
        assert all(torch.allclose(mine[key], wanted[key], atol=1e-3) for key in wanted)
        assert fits[name].best_step == plain_fits[name].best_step
        assert fits[name].tokens[0] == plain_fits[name].tokens[0]
        assert fits[name].tokens[1] >= plain_fits[name].tokens[1]


def test_a_training_goes_on_where_nothing_can_be_recorded(together, monkeypatch, caplog):
    plain, recorder, graphs_made = together("colours"), Again(fail_at=1), []
    plain.fit()
    with_graphs(monkeypatch, recorder)
    make = session.make_graphs
    monkeypatch.setattr(session, "make_graphs", lambda *given: graphs_made.append(make(*given)) or graphs_made[-1])
    graphed = together("colours")
    with caplog.at_level("INFO", logger="ttmoe"):
        graphed.fit()
    assert recorder.recorded == 1
    assert graphs_made[0]._recorded == {}  # their memory is given back
    assert caplog.text.count("kernel by kernel: out of memory") == 1
    torch.testing.assert_close(graphed.losses("colours"), plain.losses("colours"), rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_fails_its_training_a_step_late(together, monkeypatch):
    """And leaves nothing behind: no best weights, no report of its step."""
    with_graphs(monkeypatch, Again())
    broken = together("colours", "animals")
    honest = session.LossReader.add

    def add(reader, losses):
        honest(reader, {key: loss * (torch.nan if key[0].training.name == "colours" and key[1] == 6 else 1)
                        for key, loss in losses.items()})  # fmt: skip

    monkeypatch.setattr(session.LossReader, "add", add)
    outcomes = broken.fit()
    assert "is nan at step 6" in outcomes["colours"].message
    assert outcomes["animals"].steps == broken.trainings["animals"].settings.steps
    assert [report.step for report in broken.reports if report.key == "colours"] == [1, 2, 3, 4, 5]


def test_a_loss_before_an_evaluation_is_read_at_once(together, monkeypatch):
    """Weights after a loss that is not finite never become the best ones."""
    with_graphs(monkeypatch, Again())
    broken = together("colours")
    training = broken.trainings["colours"]
    broken.trainings["colours"] = replace(training, settings=QUICK.model_copy(update={"eval_every": 6}))
    honest = session.LossReader.add
    monkeypatch.setattr(session.LossReader, "add", lambda reader, losses: honest(
        reader, {key: loss + (torch.inf if key[1] == 6 else 0) for key, loss in losses.items()}))  # fmt: skip
    assert "is inf at step 6" in broken.fit()["colours"].message
    assert not any("validation.accuracy" in report.metrics for report in broken.reports)


def test_the_loss_before_one_that_is_not_finite_is_reported(together, monkeypatch):
    """Both are read at once where an evaluation is due."""
    with_graphs(monkeypatch, Again())
    broken, honest = together("colours"), session.LossReader.add
    monkeypatch.setattr(session.LossReader, "add", lambda reader, losses: honest(
        reader, {key: loss + (torch.inf if key[1] == 8 else 0) for key, loss in losses.items()}))  # fmt: skip
    assert "is inf at step 8" in broken.fit()["colours"].message
    assert [report.step for report in broken.reports] == list(range(1, 8))


def test_a_stopped_training_has_reported_what_it_saved(together, monkeypatch):
    """A training that resumes does not take those steps again."""
    with_graphs(monkeypatch, Again())
    stopped = together("colours")
    trained = session.TrainingSession(stopped.bank, stopped.pad_id, stopped.take)
    trained.start(list(stopped.trainings.values()))
    stopped.bank.train()
    for _ in range(6):
        trained.step()
    assert [report.step for report in stopped.reports] == [1, 2, 3, 4, 5]
    trained.save()
    assert [report.step for report in stopped.reports] == [1, 2, 3, 4, 5, 6]


def test_a_training_records_only_so_many_graphs(monkeypatch):
    monkeypatch.setattr(graphs_module, "MOST_GRAPHS", 2)
    recorder = Again()
    graphs = Graphs(LARGE, recorder)
    for form in range(4):
        for _ in range(EAGER_RUNS + 1):
            assert graphs.run(form, {"x": torch.ones(2)}, lambda tensors: [tensors["x"].sum()])[0] == 2
    assert recorder.recorded == 2


def test_layers_that_are_recomputed_are_not_recorded(together, monkeypatch):
    with_graphs(monkeypatch, recorder := Again())
    group = together("colours", "upper")
    training = group.trainings["upper"]
    group.trainings["upper"] = replace(training, settings=training.settings.model_copy(update={"checkpointing": True}))
    group.fit()
    assert not recorder.recorded


def test_lengths_are_few_and_never_beyond_the_longest():
    graphs = Graphs(LARGE, Again())
    lengths = [graphs.padded_length(longest, 512, 8) for longest in range(1, 513)]
    assert all(longest <= length < longest + max(8, longest / 7) for longest, length in enumerate(lengths, 1))
    assert len(set(lengths)) < 40
    assert graphs.padded_length(61, 62, 8) == 62


def test_a_pass_that_keeps_a_gpu_busy_is_not_recorded():
    parameters = 8 * 10**9
    recorder = Again()
    graphs = Graphs(parameters, recorder)
    tokens = int(most_tokens(parameters))
    assert 4 * parameters * tokens <= MOST_FLOPS
    for rows in (1, 2):
        inputs = {"input_ids": torch.zeros(rows, tokens, dtype=torch.long)}
        for _ in range(EAGER_RUNS + 2):
            graphs.run(rows, inputs, lambda tensors: [tensors["input_ids"].sum()])
        assert recorder.recorded == 1
    assert graphs.padded_length(tokens - 1, tokens, 2) == tokens - 1


def test_a_cpu_has_no_graphs():
    assert make_graphs(torch.nn.Linear(1, 1), torch.device("cpu")) is None
    assert steps_behind(torch.device("cpu")) == 0
    assert not optimizer.is_fused(torch.device("cpu"))
    assert optimizer.is_fused(torch.device("cuda"))


def test_the_state_of_an_optimizer_is_loaded_on_another_device(monkeypatch):
    """A graph contains only an optimizer whose counts of steps are on the GPU."""
    expert = SimpleNamespace(adapter=torch.nn.Linear(3, 2), head=torch.nn.Linear(2, 2).requires_grad_(False))
    first = optimizer.make_optimizer(expert, QUICK)
    expert.adapter(torch.ones(1, 3)).sum().backward()
    first.step()
    for steps, on_gpu in enumerate((True, False), 1):
        monkeypatch.setattr(optimizer, "is_fused", lambda device, on_gpu=on_gpu: on_gpu)
        monkeypatch.setattr(optimizer, "_implementation", lambda device, on_gpu=on_gpu: {
            "fused": on_gpu, "capturable": False, "foreach": not on_gpu})  # fmt: skip
        other = optimizer.make_optimizer(expert, QUICK)
        optimizer.load_optimizer(other, first.state_dict())
        assert [(group["fused"], group["foreach"]) for group in other.param_groups] == [(on_gpu, not on_gpu)]
        assert {int(state["step"]) for state in other.state.values()} == {steps}
        other.step()
        first = other
