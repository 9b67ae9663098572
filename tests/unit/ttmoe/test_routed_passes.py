"""The routed model on bases of four layers: how often each layer runs, and answers equal to the expert's alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import tiny_causal
import torch
from architectures import stir
from reference_features import router_features

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, digest_folder, load_body, load_tokenizer
from ttmoe.encoding import Choice, Completion, collate, encode_inputs
from ttmoe.expert_files import Manifest
from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec
from ttmoe.generation import generate
from ttmoe.prediction import Prediction
from ttmoe.routed import RoutedModel
from ttmoe.router import Router
from ttmoe.subspace import Subspace

LAYERS = 4
LABELS = {"colours": ("red", "green", "blue"), "animals": ("cat", "dog"), "which": (), "reply": ()}
KINDS = {"colours": "classify", "animals": "pair", "which": "choice", "reply": "generate"}
# Layers that the router reads, the lowest that is adapted, and how often each layer then runs for a batch of texts.
MODES = {
    "below what is adapted": ((0, 1), 2, [1, 1, 1, 1]),
    "up to what is adapted": ((2, 0), 2, [1, 1, 1, 1]),
    "the embeddings": ("embeddings", 0, [1, 1, 1, 1]),
    "some above": ((3, 1), 2, [1, 1, 2, 1]),
    "the top": ("last", 2, [1, 1, 2, 2]),
    "everything": ("all", 0, [2, 2, 2, 2]),
}
TEXTS = ["red north1", "cat south2 dog south4", "north3", "blue south1 cat south9 north4", "green green", "dog"]
PAIR, CHOICE = ("red north1", "cat"), Choice("green north5", ("cat", "dog", "north1 north2"))
MIXED = [*TEXTS, PAIR, CHOICE, ("south1", "north2"), Choice("south3", ("red", "dog")), "blue blue", ("alone",)]


@pytest.fixture(scope="module", params=["encoder", "causal"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "causal":
        tiny_causal.save_causal_base(folder, num_hidden_layers=LAYERS)
        return Base("folder", "tiny", "", digest_folder(folder), str(folder), "float32", 32, "last")
    from transformers import AutoConfig, BertModel

    config = AutoConfig.from_pretrained(tiny.save_base(folder))
    config.num_hidden_layers = LAYERS
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder)
    return Base("folder", "tiny", "", digest_folder(folder), str(folder), "float32", 32, "mean")


def model_of(base, layers, lowest=2, rows=(), tasks=()):
    """Build a library whose router sends ``rows`` to ``tasks``; only a causal base has an expert that generates."""
    names = [name for name in KINDS if name != "reply" or base.pooling == "last"]
    bank = Bank(load_body(base), base.pooling).eval()
    specs = {"colours": AdapterSpec(rank=2, alpha=1.0, first_layer=lowest), "which": AdapterSpec(
        rank=3, alpha=1.0, targets=("v",), first_layer=lowest), "animals": AdapterSpec(
        method="lora", rank=3, targets=("k", "o"), first_layer=3), "reply": AdapterSpec(
        method="lora", rank=4, targets=("q", "v", "o"), first_layer=lowest)}  # fmt: skip
    manifests = {}
    for i, name in enumerate(names):
        classes = len(LABELS[name]) or int(KINDS[name] == "choice")
        stir(bank.add(name, specs[name], classes, torch.Generator()), i, 0.2).requires_grad_(False)
        manifests[name] = Manifest(name, KINDS[name], LABELS[name], {}, specs[name], {}, 0, "", "", answer_tokens=5)
    spec, tokenizer = FeatureSpec(layers), load_tokenizer(base)
    router = Router(names, 64 * len(spec.poolings) * len(spec.indexes(LAYERS)), spec)
    if rows:
        found = features_of(bank, tokenizer, rows, spec)
        wanted = torch.nn.functional.one_hot(torch.tensor([names.index(task) for task in tasks]), len(names)) * 5.0
        with torch.no_grad():
            router.gate.weight.copy_((torch.linalg.pinv(found.double()) @ wanted.double()).T)
    return RoutedModel(bank, router, manifests, tokenizer, base.max_length)


def features_of(bank, tokenizer, rows, spec):
    items = encode_inputs(tokenizer, rows, 32)
    return torch.cat([router_features(bank.model, collate([item.whole], 0), spec) for item in items])


def in_turn(model, rows):
    """Assign the library's tasks to the rows in turn."""
    tasks = [name for name in KINDS if name in model.manifests]
    return [tasks[i % len(tasks)] for i in range(len(rows))]


def steered(base, layers, lowest, rows):
    """Build a model that sends the rows to its tasks in turn, and return it with these tasks."""
    tasks = in_turn(model_of(base, layers, lowest), rows)
    return model_of(base, layers, lowest, rows, tasks), tasks


@pytest.fixture
def runs():
    """Count how often each layer of a model runs. A skipped layer has not run."""
    hooks = []

    def count(model):
        seen = [0] * LAYERS
        for i, layer in enumerate(model.bank.trunk(0).layers):
            inner = layer.attention if hasattr(layer, "attention") else layer.self_attn

            def add(*_, i=i):
                seen[i] += 1

            hooks.append(inner.register_forward_hook(add))
        return seen

    yield count
    for hook in hooks:
        hook.remove()


def lone(model, task, row):
    """Compute the row's probabilities with the bank's forward and the task's expert alone."""
    (item,) = encode_inputs(model.tokenizer, [row], model.max_length)
    if KINDS[task] == "choice":
        return torch.stack([model.bank(collate([tokens], 0), task)[0, 0] for tokens in item.options]).softmax(0)
    return model.bank(collate([item.whole], 0), task)[0].softmax(0)


@pytest.mark.parametrize(("layers", "lowest", "expected"), MODES.values(), ids=MODES)
def test_scores_equal_those_of_the_expert_alone(base, layers, lowest, expected):
    model, tasks = steered(base, layers, lowest, MIXED)
    assert model.one_pass is (expected == [1] * LAYERS)
    answers = model.predict(MIXED)
    assert [answer.task for answer in answers] == tasks
    judged = 0
    for row, task, answer in zip(MIXED, tasks, answers, strict=True):
        assert answer.routing > 0.9
        if KINDS[task] == "generate" or (KINDS[task] == "choice" and not isinstance(row, Choice)):
            assert answer.scores == {}
            continue
        shares = lone(model, task, row).tolist()
        names = LABELS[task] or tuple(map(str, range(len(shares))))
        assert answer.scores == pytest.approx(dict(zip(names, shares, strict=True)), abs=1e-5)
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-6)
        assert answer.label == max(answer.scores, key=answer.scores.__getitem__)
        assert answer.confidence == answer.scores[answer.label] == max(answer.scores.values())
        judged += 1
    assert judged > 4


@pytest.mark.parametrize(("layers", "lowest", "expected"), MODES.values(), ids=MODES)
def test_how_often_each_layer_runs(base, runs, layers, lowest, expected):
    rows = TEXTS[:4]
    model = model_of(base, layers, lowest, rows, ["colours", "animals", "animals", "colours"])
    model.predict(rows)  # a trunk asks one layer, once, what it returns
    seen = runs(model)
    assert {answer.task for answer in model.predict(rows)} == {"colours", "animals"}
    assert seen == expected
    top = max(model.router.features.indexes(LAYERS))
    assert max(seen) <= 2
    assert all(count == 1 for count in seen[: min(lowest, top)])


def test_a_batch_starts_below_the_layers_that_its_experts_adapt(base, runs):
    """All rows go to the expert that adapts only layer 3: the layers below run once, for the router."""
    model = model_of(base, (3, 1), 2, TEXTS, ["animals"] * len(TEXTS))
    model.predict(TEXTS)
    seen = runs(model)
    model.predict(TEXTS)
    assert not model.one_pass
    assert seen == [1] * LAYERS


@pytest.mark.parametrize(("layers", "lowest"), [((0, 2), 2), ("last", 0)])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_mixed_batches_answer_in_order_as_each_row_alone(base, layers, lowest, size):
    rows = [*MIXED, Completion("cat north7 red", "not asked")] if base.pooling == "last" else MIXED
    model, tasks = steered(base, layers, lowest, rows)
    found, alone = model.predict(rows, size), [model.predict([row])[0] for row in rows]
    assert [answer.task for answer in found] == tasks
    same(found, alone)
    same(model.predict(rows[::-1], size)[::-1], found)


def same(some, others):
    """Compare answers; probabilities may differ by rounding between batches."""
    for a, b in zip(some, others, strict=True):
        assert (a.task, a.label) == (b.task, b.label)
        assert (a.confidence, a.routing) == pytest.approx((b.confidence, b.routing), abs=1e-5)
        assert a.scores == pytest.approx(b.scores, abs=1e-5)


@pytest.mark.parametrize("base", ["causal"], indirect=True)
def test_the_label_of_a_generating_expert_is_its_text(base):
    model, _ = steered(base, (0, 2), 2, MIXED)
    model.manifests["reply"] = replace(model.manifests["reply"], answer_tokens=3)
    answers = dict(zip(MIXED, model.predict(MIXED), strict=True))
    for row, prompt in ((TEXTS[3], TEXTS[3]), (CHOICE, "green north5\ncat\ndog\nnorth1 north2")):
        written = generate(model.bank, model.tokenizer, [prompt], "reply", 3, max_length=32)[0]
        assert (answers[row].task, answers[row].label, answers[row].scores) == ("reply", written.text, {})
        assert answers[row].confidence == pytest.approx(written.probability, rel=1e-3)
        assert len(written.text.split()) <= 3


def familiar(model, rows, **thresholds):
    """Add familiarity to the router, with these thresholds and -inf for the other tasks."""
    router = model.router
    found = router.standardise(features_of(model.bank, model.tokenizer, rows, router.features))
    router.familiarity = Familiarity.from_subspace(Subspace.fit([found] * len(router.tasks), lambda part: part))
    for task, threshold in thresholds.items():
        router.familiarity.thresholds[router.tasks.index(task)] = threshold


@pytest.mark.parametrize(("layers", "lowest"), [((0, 2), 2), ("last", 2)])
def test_unfamiliar_rows_are_unknown_or_answered_on_request(base, layers, lowest):
    model, tasks = steered(base, layers, lowest, MIXED)
    plain = model.predict(MIXED)
    familiar(model, MIXED)
    same(model.predict(MIXED), plain)
    for unlike in set(tasks):
        familiar(model, MIXED, **{unlike: math.inf})
        found = model.predict(MIXED)
        for answer, task, other in zip(found, tasks, plain, strict=True):
            if task == unlike:
                assert answer == Prediction("unknown", "", 0.0, answer.routing, {}, familiar=False)
                assert answer.routing == pytest.approx(other.routing, abs=1e-5)
            else:
                same([answer], [other])
        every = model.predict(MIXED, unknown=False)
        assert [answer.familiar for answer in every] == [task != unlike for task in tasks]
        assert [replace(answer, familiar=True) for answer in every] == plain


def test_unknown_rows_run_no_layer_above_those_that_the_router_reads(base, runs):
    model, tasks = steered(base, (0, 1), 2, MIXED)
    familiar(model, MIXED, **dict.fromkeys(tasks, math.inf))
    model.predict(MIXED)
    seen = runs(model)
    assert {(answer.task, answer.label) for answer in model.predict(MIXED)} == {("unknown", "")}
    assert seen == [1, 0, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("places", [(slice(None), slice(None)), (0, slice(None)), (1, 5)])
def test_a_gate_that_is_not_finite_gives_finite_answers(base, bad, places):
    model, _ = steered(base, (0, 2), 2, MIXED)
    familiar(model, MIXED)
    with torch.no_grad():
        model.router.gate.weight[places] = bad
        model.router.gate.bias[places[0]] = bad
    for answer in model.predict(MIXED):
        assert answer.task in model.manifests
        assert all(0 <= value <= 1 for value in (answer.confidence, answer.routing, *answer.scores.values()))


def test_an_expert_whose_scores_are_not_finite_gives_finite_answers(base):
    model = model_of(base, (0, 2), 2, TEXTS, ["colours"] * len(TEXTS))
    with torch.no_grad():
        model.bank.expert("colours").head.bias[1] = torch.nan
    for answer in model.predict(TEXTS):
        assert answer.label in ("red", "blue")
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("layers", "lowest"), [((0, 2), 2), ("all", 0)])
def test_predicting_changes_no_state(base, layers, lowest):
    model, _ = steered(base, layers, lowest, MIXED)
    familiar(model, MIXED)
    model.predict(MIXED[:1])
    parts = (model.bank, model.router)
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.bank.modules()]
    first = model.predict(MIXED)
    assert model.predict(MIXED) == first
    for part, values in zip(parts, before, strict=True):
        assert values.keys() == part.state_dict().keys()
        assert all(torch.equal(value, values[key]) for key, value in part.state_dict().items())
        assert not part.training
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.bank.modules()
    ]
