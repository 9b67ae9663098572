"""The routed model: loading, predictions, and errors of mismatched files."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import tiny_causal
import torch
from library import KINDS, base_of, save_library

from ttmoe import routed as routed_module
from ttmoe.base import load_body
from ttmoe.encoding import Choice, collate
from ttmoe.errors import InputError
from ttmoe.routed import RoutedModel

TEXTS = ["red north1", "cat south2 dog", "north3", "blue south1 cat south9", "green green", "dog", "south4 north4 red"]
ROWS = [*TEXTS, ("red north1", "cat"), ("south1", "north2"), Choice("red", ("cat", "dog", "north1 north2")), ("alone",)]


@pytest.fixture(scope="module")
def base(base_folder):
    return base_of(base_folder)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return save_library(tmp_path_factory.mktemp("library"), base)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def routed(folder, base):
    return RoutedModel.load(folder, base)


def same(some, others):
    """Compare answers; probabilities may differ by rounding between batches."""
    for a, b in zip(some, others, strict=True):
        assert (a.task, a.label) == (b.task, b.label)
        assert (a.confidence, a.routing) == pytest.approx((b.confidence, b.routing), abs=1e-5)


def test_answers_are_complete_and_come_from_several_experts(routed):
    answers = routed.predict(ROWS)
    assert len(answers) == len(ROWS)
    assert len({a.task for a in answers}) == 3
    for answer in answers:
        assert 0 < answer.confidence <= 1
        assert 1 / 3 <= answer.routing <= 1
        if KINDS[answer.task][0] != "choice":
            assert answer.label in KINDS[answer.task][1]


def test_equal_inputs_give_equal_answers(routed, folder, base):
    answers = routed.predict(ROWS)
    assert routed.predict(ROWS) == answers
    assert RoutedModel.load(folder, base).predict(ROWS) == answers


@pytest.mark.parametrize("size", [1, 2, 64])
def test_answers_do_not_depend_on_the_batch(routed, size):
    same(routed.predict(ROWS[::-1], size)[::-1], routed.predict(ROWS))


def test_a_row_is_answered_by_the_chosen_expert(routed):
    for text, answer in zip(TEXTS, routed.predict(TEXTS), strict=True):
        inputs = dict(routed.tokenizer(text, return_tensors="pt"))
        shares = routed.bank(inputs, answer.task)[0].softmax(-1)
        if KINDS[answer.task][0] != "choice":
            assert answer.label == KINDS[answer.task][1][int(shares.argmax())]
            assert answer.confidence == pytest.approx(shares.max().item(), abs=1e-5)


def test_a_choice_is_answered_with_the_index_of_an_option(routed):
    with torch.no_grad():
        routed.router.gate.weight.zero_()
        routed.router.gate.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    options = ("cat", "dog", "north1 north2")
    answer, plain = routed.predict([Choice("red", options), "red"])
    assert (answer.task, plain.task, plain.label) == ("which", "which", "")
    pairs = [dict(routed.tokenizer("red", option, return_tensors="pt")) for option in options]
    scores = [routed.bank(pair, "which")[0, 0] for pair in pairs]
    assert answer.label == str(int(torch.stack(scores).argmax()))
    assert answer.confidence == pytest.approx(torch.stack(scores).softmax(0).max().item(), abs=1e-5)


def test_router_scores_that_are_not_finite_still_give_an_answer(routed):
    with torch.no_grad():
        routed.router.gate.weight[0].fill_(torch.nan)
    for answer in routed.predict(ROWS):
        assert answer.task != "colours"
        assert 0 < answer.confidence <= 1
        assert 0 < answer.routing <= 1
    with torch.no_grad():
        routed.router.gate.weight.fill_(torch.nan)
    assert {(a.task, round(a.routing, 5)) for a in routed.predict(ROWS)} == {("colours", 0.33333)}


def test_a_choice_may_have_more_or_fewer_options_than_the_training_rows(routed):
    routed.manifests["which"] = replace(routed.manifests["which"], labels=("0", "1"))
    rows = [Choice("red", tuple(f"north{i}" for i in range(count))) for count in (1, 2, 3, 5)]
    with torch.no_grad():
        routed.router.gate.bias[routed.router.tasks.index("which")] = 1e6
    for row, answer in zip(rows, routed.predict(rows), strict=True):
        assert answer.task == "which"
        if len(row.options) > 1:
            assert list(answer.scores) == [str(i) for i in range(len(row.options))]
            assert answer.label == max(answer.scores, key=answer.scores.get)


def test_empty_inputs(routed):
    assert routed.predict([]) == []
    with pytest.raises(InputError, match="an empty text"):
        routed.predict(["red", " "])


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_stale_lock(copy, base):
    edit(copy / "router.json", lambda m: m["lock"].update(animals="another-hash"))
    with pytest.raises(InputError, match=r"expert 'animals' is animals-hash, .* trained for another-hash") as caught:
        RoutedModel.load(copy, base)
    assert "stale" in caught.value.fix


def test_a_router_of_another_base(copy, base):
    edit(copy / "router.json", lambda m: m["base"].update(digest="0" * 64))
    with pytest.raises(InputError, match=rf"on base {'0' * 12}, but the loaded base is {base.digest[:12]}") as caught:
        RoutedModel.load(copy, base)
    assert caught.value.fix == "load the base that the router was trained on"


def test_an_expert_that_is_missing_or_of_another_base(copy, base):
    edit(copy / "experts" / "which" / "expert.json", lambda m: m["base"].update(digest="0" * 64))
    with pytest.raises(InputError, match="'which' was trained on base tiny"):
        RoutedModel.load(copy, base)
    shutil.rmtree(copy / "experts" / "which")
    with pytest.raises(InputError, match="cannot read the expert manifest"):
        RoutedModel.load(copy, base)


def test_d18_batches_of_predictions_are_sized_by_tokens_too(routed, monkeypatch):
    """Of a choice every option counts; answers do not depend on it."""
    answers, shapes = routed.predict(ROWS), []
    monkeypatch.setattr(routed_module, "batch_tokens", lambda device: {"cpu": 12}[device])

    def record(rows, *args, **options):
        shapes.append((len(rows), max(len(row["input_ids"]) for row in rows)))
        return collate(rows, *args, **options)

    monkeypatch.setattr(routed_module, "collate", record)
    same(routed.predict(ROWS), answers)
    assert max(rows * tokens for rows, tokens in shapes if rows > 1) <= 12
    assert any(rows > 1 for rows, _ in shapes)
    shapes.clear()
    same(routed.predict(ROWS, 1), answers)
    assert {rows for rows, _ in shapes} == {1}


def test_d18_of_the_routers_pass_only_the_states_are_kept_from_which_experts_continue(routed):
    inputs = collate([{"input_ids": [2, 5, 3]}, {"input_ids": [2, 6]}], 0)
    features, hidden = routed._read_base(inputs)
    assert features.shape == (2, routed.router.mean.numel())
    assert sorted(hidden) == [0, 1]  # of three; experts adapt layers 0 and 1
    routed.bank.remove("colours")
    routed.bank.remove("animals")
    routed.router.tasks = ("which",)
    assert sorted(routed._read_base(inputs)[1]) == [1]


def test_d18_a_pass_of_a_loaded_base_keeps_no_keys_and_values(tmp_path):
    """Those of all layers would take as much as many hidden states."""
    tiny_causal.save_causal_base(tmp_path)
    model = load_body(base_of(tmp_path))
    assert model(**collate([{"input_ids": [2, 5, 3]}], 0)).past_key_values is None


def test_a_lock_that_names_a_folder_elsewhere_is_refused(copy, base):
    (copy / "experts" / "colours").rename(copy.parent / "elsewhere")
    edit(copy / "router.json", lambda m: m["lock"].update({"../../elsewhere": m["lock"].pop("colours")}))
    with pytest.raises(InputError, match=r"'\.\./\.\./elsewhere' is not a path inside the router's folder"):
        RoutedModel.load(copy, base)


def test_a_group_answers_with_the_mixture_of_its_experts_by_label_name(routed):
    """Labels of one name add up; the router's shares within the group are the weights."""
    routed.manifests["animals"] = replace(routed.manifests["animals"], labels=("green", "crimson"))
    routed.router.groups = (("colours", "animals"),)
    with torch.no_grad():
        routed.router.gate.weight.mul_(0.02)  # no expert is alone
        alone = routed.router.gate.weight.clone()
    mixed = 0
    for text, answer in zip(TEXTS, routed.predict(TEXTS), strict=True):
        inputs = dict(routed.tokenizer(text, return_tensors="pt"))
        features, _ = routed._read_base(inputs)
        colours, animals, which = routed.router(features)[0].softmax(-1).tolist()
        if answer.task == "which":
            assert which > colours + animals
            continue
        mixed += 1
        assert colours + animals > which
        assert answer.task == ("colours" if colours > animals else "animals")
        assert answer.routing == pytest.approx(colours + animals, abs=1e-5)
        shares = {name: share / (colours + animals) for name, share in (("colours", colours), ("animals", animals))}
        expected = dict.fromkeys(("red", "green", "blue", "crimson"), 0.0)
        for name, share in shares.items():
            found = routed.bank(inputs, name)[0].softmax(-1).tolist()
            for label, value in zip(routed.manifests[name].labels, found, strict=False):
                expected[label] += share * value
        assert answer.scores == pytest.approx(expected, abs=1e-4)
        assert answer.label == max(expected, key=expected.get)
        assert answer.confidence == answer.scores[answer.label]
    assert mixed > 2
    assert torch.equal(alone, routed.router.gate.weight)
    same(routed.predict(ROWS[::-1], 2)[::-1], routed.predict(ROWS))


def test_an_expert_with_almost_no_share_is_not_asked(routed, monkeypatch):
    routed.router.groups = (("colours", "animals"),)
    with torch.no_grad():
        routed.router.gate.weight.zero_()
        routed.router.gate.bias.copy_(torch.tensor([9.0, 2.0, -9.0]))
    asked, honest = [], routed._score
    monkeypatch.setattr(routed, "_score", lambda *args: asked.extend(args[-1]) or honest(*args))
    answers = routed.predict(TEXTS)
    assert {answer.task for answer in answers} == {"colours"}
    assert {name for _, name in asked} == {"colours"}
    assert len(asked) == len(TEXTS)


def test_options_are_mixed_by_their_place(routed):
    routed.manifests["colours"] = replace(routed.manifests["which"], task="colours")
    routed.router.groups = (("colours", "which"),)
    with torch.no_grad():
        routed.router.gate.weight.zero_()
        routed.router.gate.bias.copy_(torch.tensor([1.0, -9.0, 1.5]))
    row = Choice("red", ("cat", "dog", "north1 north2"))
    (mixed,) = routed.predict([row])
    assert mixed.task == "which"
    alone = {}
    for name, bias in (("colours", (9.0, 0.0, 0.0)), ("which", (0.0, 0.0, 9.0))):
        routed.router.groups = ()
        with torch.no_grad():
            routed.router.gate.bias.copy_(torch.tensor(bias))
        (alone[name],) = routed.predict([row])
    share = 1 / (1 + math.exp(-0.5))
    expected = {i: share * alone["which"].scores[i] + (1 - share) * alone["colours"].scores[i] for i in ("0", "1", "2")}
    assert mixed.scores == pytest.approx(expected, abs=1e-4)


def test_half_of_a_character_is_an_error(routed):
    for row in ("red \ud800", ("red", "\udfff"), Choice("red", ("cat", "\ud83d"))):
        with pytest.raises(InputError, match="no Unicode text"):
            routed.predict(["red", row])
