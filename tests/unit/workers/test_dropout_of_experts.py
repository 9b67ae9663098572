"""What an expert draws belongs to the expert: it is the same alone, in any pack, resumed and in any micro-batches."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import tiny
import tiny_causal
import torch

from ttmoe import TextBank
from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import pad_id_of
from ttmoe.scoring import score
from workers.data.examples import Example
from workers.failure import Failure
from workers.training.batches import tokenize
from workers.training.checkpoints import CheckpointFolder
from workers.training.evaluation import evaluate
from workers.training.loop import fit_experts
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining

STEPS = 20
COMMON = TrainSettings(steps=STEPS, batch_size=8, eval_every=10, lr=5e-3, patience=0, seed=0)


@dataclass(frozen=True)
class Member:
    """An expert of a pack: its rows, number of outputs, adapter and settings."""

    rows: list[Example]
    outputs: int
    spec: AdapterSpec
    settings: TrainSettings

    def with_settings(self, **changes):
        return replace(self, settings=self.settings.model_copy(update=changes))


def texts(count=80, filler="north", longer=0):
    draw = random.Random(filler)
    more = " ".join(draw.choices(tiny.FILLERS[filler], k=longer))
    return [Example((f"{text} {more}".strip(),), (), tiny.COLOURS.index(word), "")
            for text, word in tiny.sentences(count, tiny.COLOURS, filler)]  # fmt: skip


def pairs(count=60):
    firsts, seconds = tiny.sentences(count, tiny.ANIMALS, "south"), tiny.sentences(count, tiny.ANIMALS, "north", 1)
    random.Random(0).shuffle(seconds)
    return [Example((a, b), (), int(x == y), "") for (a, x), (b, y) in zip(firsts, seconds, strict=True)]


def choices(count=50):
    draw, found = random.Random(1), []
    for text, word in tiny.sentences(count, tiny.COLOURS, "south", 2):
        options = draw.sample(tiny.COLOURS, draw.randint(2, 3))
        label = options.index(word) if word in options else 0
        found.append(Example((text.replace(word, "north0"),), tuple(options), label, ""))
    return found


def completions(count=60):
    return [Example((prompt,), (), 0, "", answer) for prompt, answer in tiny_causal.completions(count)]


def settings(**changes):
    return COMMON.model_copy(update=changes)


# Seeds at which no gradient of the first steps is as small as AdamW's eps, where its steps magnify rounding.
MEMBERS = {
    "text": Member(texts(), 3, AdapterSpec(rank=4, dropout=0.1), settings(seed=7)),
    "pair": Member(pairs(), 2, AdapterSpec(method="lora", rank=2, targets=("q", "v", "o"), dropout=0.3),
                   settings(batch_size=5, head_dropout=0.4, seed=4)),
    "choice": Member(choices(), 1, AdapterSpec(rank=2, targets=("v", "down"), dropout=0.1),
                     settings(batch_size=6, seed=5)),
    "generate": Member(completions(), 0, AdapterSpec(rank=3, targets=("q", "v"), dropout=0.1),
                       settings(batch_size=4, seed=5)),
    "long": Member(texts(50, "south", longer=25), 3, AdapterSpec(rank=5), settings(steps=12, head_dropout=0.0)),
}  # fmt: skip


@pytest.fixture(scope="module")
def dropping_base(tmp_path_factory):
    """A causal base that was trained with dropout, as many are."""
    folder = tiny_causal.save_causal_base(tmp_path_factory.mktemp("base"), attention_dropout=0.2)
    return Base("folder", "tiny", "", "d" * 64, str(folder), "float32", 64, "last")


class Pack:
    """Experts that are trained together, and each one's weights after ``STEPS`` steps."""

    def __init__(self, base, members, *, padding_side="right", checkpoints=None, stop=None):
        self.bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
        tokenizer.padding_side = padding_side
        self.pad_id, self.stop, self.weights, self.trainings = pad_id_of(tokenizer), stop, {}, []
        for name, member in members.items():
            seed = torch.Generator().manual_seed(member.settings.seed)
            self.bank.add(name, member.spec, member.outputs, seed)
            rows = tokenize(tokenizer, member.rows, base.max_length)
            folder = CheckpointFolder(checkpoints / name, "s") if checkpoints else None
            self.trainings.append(ExpertTraining(name, rows, rows.first(8), member.settings, "trained", folder))

    def take(self, progress):
        if progress.metrics and progress.step == STEPS:
            state = self.bank.expert(progress.key).state_dict()
            self.weights[progress.key] = {key: value.clone() for key, value in state.items()}
        if progress.step == self.stop:
            raise KeyboardInterrupt

    def fit(self):
        outcomes = fit_experts(self.bank, self.trainings, pad_id=self.pad_id, report=self.take)
        assert not [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)], outcomes
        return self.weights


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one if one[key].numel())


@pytest.fixture(scope="module")
def alone(dropping_base):
    return {name: Pack(dropping_base, {name: member}).fit()[name] for name, member in MEMBERS.items() if name != "long"}


PACKS = [("text", "long"), ("pair", "text"), ("choice", "pair"), ("long", "generate"), tuple(MEMBERS),
         tuple(MEMBERS)[::-1]]  # fmt: skip


@pytest.mark.parametrize(("names", "padding_side"), [
    *((names, ("left", "right")[i % 2]) for i, names in enumerate(PACKS)),
    *(pytest.param(names, ("right", "left")[i % 2], marks=pytest.mark.thorough) for i, names in enumerate(PACKS)),
], ids=lambda each: each if isinstance(each, str) else "-".join(each))  # fmt: skip
def test_an_expert_in_company_is_the_one_trained_alone(dropping_base, alone, names, padding_side):
    found = Pack(dropping_base, {name: MEMBERS[name] for name in names}, padding_side=padding_side).fit()
    assert found
    for name, weights in found.items():
        assert difference(weights, alone[name]) < 1e-5, name


@pytest.mark.parametrize("name", ["text", "pair", "choice", "generate"])
@pytest.mark.parametrize("changes", [{"micro_batch": 3}, {"checkpointing": True}], ids=str)
def test_micro_batches_and_recomputation_draw_the_same(dropping_base, alone, name, changes):
    found = Pack(dropping_base, {name: MEMBERS[name].with_settings(**changes)}).fit()
    assert difference(found[name], alone[name]) < 1e-5


def test_a_stopped_pack_goes_on_alone(dropping_base, alone, tmp_path):
    """A retry takes an expert out of its pack and halves its micro-batch."""
    names = ("generate", "choice", "text")
    with pytest.raises(KeyboardInterrupt):
        Pack(dropping_base, {n: MEMBERS[n] for n in names}, checkpoints=tmp_path, stop=13).fit()
    for name in names:
        assert [found.step for found in CheckpointFolder(tmp_path / name, "s").load()] == [10, 0]
        resumed = Pack(dropping_base, {name: MEMBERS[name].with_settings(micro_batch=4)}, checkpoints=tmp_path)
        assert difference(resumed.fit()[name], alone[name]) < 1e-5


def test_the_dropout_is_there(dropping_base, alone):
    """The tests above can fail: other rates and another seed give other weights."""
    member = MEMBERS["text"]
    for other in (member.with_settings(head_dropout=0.0), replace(member, spec=replace(member.spec, dropout=0.0))):
        assert difference(Pack(dropping_base, {"text": other}).fit()["text"], alone["text"]) > 1e-2


def test_a_training_an_evaluation_and_an_answer_leave_the_generator_of_torch_alone(dropping_base):
    before = torch.get_rng_state()
    pack = Pack(dropping_base, {"text": MEMBERS["text"]})
    pack.fit()
    evaluate(pack.bank, "text", pack.trainings[0].validation, pack.pad_id)
    bank = TextBank(pack.bank, load_tokenizer(dropping_base), dropping_base)
    bank.labels["text"] = tiny.COLOURS
    assert set(bank.answer(["north1 red", "blue"], "text")) <= set(tiny.COLOURS)
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_change_nothing_outside_training(dropping_base):
    pack = Pack(dropping_base, {name: MEMBERS[name].with_settings(steps=3) for name in ("text", "pair")})
    pack.fit()
    items, names = pack.trainings[0].train.items[:4], ["text", "pair"] * 2
    plain = score(pack.bank, items, names, pack.pad_id)
    keyed = score(pack.bank, items, names, pack.pad_id, dropout_keys=torch.arange(8, dtype=torch.int32).reshape(4, 2))
    assert all(torch.equal(one, other) for one, other in zip(plain, keyed, strict=True))


NEW_ROWS = 500


def accuracy(base, names, name, threads, **changes):
    """The accuracy on new rows of an expert that was trained in a pack."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pack = Pack(base, {each: MEMBERS[each].with_settings(**changes) for each in names})
        pack.fit()
        rows = tokenize(load_tokenizer(base), texts(80 + NEW_ROWS)[80:], base.max_length)
        return evaluate(pack.bank, name, rows, pack.pad_id)["accuracy"]
    finally:
        torch.set_num_threads(before)


@pytest.mark.thorough
def test_a_whole_training_ends_at_the_accuracy_of_one_alone(dropping_base):
    """Within the spread of trainings alone on one thread and on two, or one row."""
    changes = {"steps": 60, "eval_every": 20}
    one, two = (accuracy(dropping_base, ["text"], "text", threads, **changes) for threads in (1, 2))
    packed = accuracy(dropping_base, ["text", "long"], "text", 1, **changes)
    assert 0.4 < one < 0.98  # an accuracy that another training would not have
    assert min(one, two) - 1.5 / NEW_ROWS < packed < max(one, two) + 1.5 / NEW_ROWS
