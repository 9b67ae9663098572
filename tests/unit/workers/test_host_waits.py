"""A step of the training loop never makes the host wait for the device."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import transformers
from host_reads import META, NoWaiting, on_meta
from tiny_causal import SIZES

from ttmoe.adapter import AdapterSpec
from ttmoe.attention import use_right_padding
from ttmoe.bank import Bank
from ttmoe.encoding import Item
from ttmoe.transfer import to_device
from workers.training.batches import TokenizedRows
from workers.training.gradients import activation_checkpointing
from workers.training.losses import LossReader, steps_behind
from workers.training.session import TrainingSession
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining

VOCABULARY = 50


@pytest.fixture
def bank(monkeypatch):
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, **SIZES)
    model = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
    use_right_padding(model)
    # Which states a head is scaled by is found once, before the steps.
    monkeypatch.setattr("ttmoe.head.Head.fit_scale", lambda head, states: None)
    return Bank(on_meta(model, monkeypatch), "last")


def sequence(length):
    return {"input_ids": [1] * length}


KINDS = {
    "classes": (3, lambda i: Item(sequence(3 + i % 5))),
    "options": (1, lambda i: Item(sequence(4), tuple(sequence(3 + i % 4) for _ in range(2 + i % 3)))),
    "answers": (0, lambda i: Item(sequence(4), (sequence(5 + i % 4),), 2 + i % 2)),
}


@dataclass(frozen=True)
class Kept:
    """Trunk states as they are stored: in main memory."""

    depth: int

    def gather(self, sequences, device):
        return to_device(torch.zeros(len(sequences), 8, SIZES["hidden_size"]), device)


def training(bank, name, kind, settings, *, first_layer=0, states=None):
    classes, item = KINDS[kind]
    bank.add(name, AdapterSpec(rank=4, dropout=0.1, first_layer=first_layer), classes, torch.Generator())
    items = [Item(sequence(8)) if states else item(i) for i in range(12)]
    rows = TokenizedRows(items, [0] * 12, states)
    return ExpertTraining(name, rows, rows, settings, "trained")


@pytest.mark.parametrize(("kinds", "more", "recomputes"), [
    (["classes"], {}, False), (["classes", "options", "answers"], {}, False), (["options", "answers"], {}, True),
    (["classes", "classes"], {"micro_batch": 3}, False), (["classes", "classes"], {"batch_tokens": 30}, True),
])  # fmt: skip
def test_a_step(bank, monkeypatch, kinds, more, recomputes):
    settings = TrainSettings(steps=50, batch_size=4, eval_every=50, seed=0, clip=1.0, head_dropout=0.1, **more)
    trainings = [training(bank, f"{kind} {i}", kind, settings) for i, kind in enumerate(kinds)]
    _run(bank, monkeypatch, trainings, recomputes)


@pytest.mark.parametrize("states", [None, Kept(1)], ids=["trunk computed", "trunk stored"])
def test_a_step_above_a_trunk(bank, monkeypatch, states):
    settings = TrainSettings(steps=50, batch_size=4, eval_every=50, seed=0)
    trainings = [training(bank, name, "classes", settings, first_layer=1, states=states) for name in "ab"]
    _run(bank, monkeypatch, trainings, False)


def _run(bank, monkeypatch, trainings, recomputes):
    """Take three steps of the loop; the losses, which it reads of the step before, are left on the device."""
    asked = []
    monkeypatch.setattr(LossReader, "read", lambda reader, behind: asked.append(behind) or {})
    session = TrainingSession(bank, 0, lambda progress: None)
    session.start(trainings)
    assert not session.outcomes
    bank.train()
    with activation_checkpointing(bank.model, recomputes), NoWaiting() as seen:
        for _ in range(3):
            session.step()
    assert not session.outcomes
    assert {state.result.steps for state in session.active} == {3}
    assert asked[-3:] == [1, 1, 1]
    for state in session.active:  # a graph of a pass that failed in part still has the addresses of the gradients
        grads = [p.grad for p in state.expert.adapter.parameters()]
        state.zero_grad()
        assert all(grad is p.grad for grad, p in zip(grads, state.expert.adapter.parameters(), strict=True))
        assert grads[0] is not None
    assert seen.copies
    assert steps_behind(META) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kinds", [["classes"], ["classes", "options", "answers"]], ids=["one", "three"])
def test_a_step_on_a_gpu(kinds):
    """torch raises an error where an operation makes the host wait. Five steps: the last ones come from graphs."""
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, **SIZES)
    model = transformers.AutoModel.from_config(config, attn_implementation="sdpa").to("cuda")
    use_right_padding(model)
    bank = Bank(model, "last")
    settings = TrainSettings(steps=50, batch_size=12, eval_every=50, seed=0)
    session = TrainingSession(bank, 0, lambda progress: None)
    session.start([training(bank, kind, kind, settings) for kind in kinds])
    bank.train()
    session.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            session.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not session.outcomes
