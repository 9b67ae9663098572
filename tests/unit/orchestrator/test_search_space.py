import itertools
import random

import pytest
from transformers import BertConfig, BertModel

from orchestrator.config.schema import SearchSettings
from orchestrator.plan.search_space import adapter_changes, balanced_factors, search_space
from orchestrator.search.pareto import pareto_front
from ttmoe.adapter import AdapterSpec, Group, plan_groups
from ttmoe.errors import InputError
from ttmoe.methods import LowRank
from ttmoe.shapes import TTShape


def group(role, inputs, outputs):
    return Group(role, LowRank(inputs, outputs, 4), ())


def search(**more):
    return SearchSettings(task="t", **more)


def test_the_space_names_ranks_and_forms_that_fit_every_map():
    space = search_space([group("q", 384, 384), group("v", 384, 128)], search(ranks=(2, 8), cores=(4, 6)))
    assert space == {"rank": [2, 8], "factors": ["2+2", "2+3", "3+2", "3+3"]}
    assert search_space([group("q", 384, 384), group("v", 384, 15)], search(cores=(4, 6)))["factors"] == ["2+2", "3+2"]


def test_the_most_balanced_factors_of_a_form():
    assert balanced_factors(group("q", 64, 64), 2, 2) == "8x8|8x8"
    assert balanced_factors(group("q", 64, 15), 3, 2) == "4x4x4|3x5"
    assert balanced_factors(group("q", 64, 15), 2, 3) is None
    shape = TTShape.parse(f"{balanced_factors(group('q', 384, 1536), 3, 3)}@4")
    assert (shape.in_features, shape.out_features) == (384, 1536)


def test_maps_without_a_common_form_are_refused():
    with pytest.raises(InputError) as caught:
        search_space([group("q", 64, 64), group("v", 7, 7)], search(cores=(4, 6)))
    assert caught.value.where == "search.cores"
    assert caught.value.what == "no shape with 4 to 6 cores fits linear maps of 64 to 64, 7 to 7 features"
    assert caught.value.fix


def test_a_choice_becomes_an_adapter_that_can_be_planned():
    config = BertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=5, intermediate_size=64)
    body, spec = BertModel(config), AdapterSpec(targets=("q", "up"))
    groups = plan_groups(body, spec)
    space = search_space(groups, search(ranks=(2, 4)))
    for rank, factors in itertools.product(space["rank"], space["factors"]):
        chosen = adapter_changes(groups, {"rank": rank, "factors": factors})
        shapes = {g.role: g.method.shape for g in plan_groups(body, AdapterSpec(targets=spec.targets, **chosen))}
        assert set(shapes) == {"q", "up"}
        for shape in shapes.values():
            assert f"{len(shape.inputs)}+{len(shape.outputs)}" == factors
            assert shape.rank == rank


def trials(*pairs):
    return [{"accuracy": a, "parameters": p, "spec_hash": str(i)} for i, (a, p) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(0.9, 100)], [(0.9, 100)]),
        ([(0.9, 100), (0.8, 50)], [(0.9, 100), (0.8, 50)]),
        ([(0.9, 100), (0.9, 50)], [(0.9, 50)]),  # as accurate and smaller
        ([(0.9, 100), (0.8, 100)], [(0.9, 100)]),  # as small and more accurate
        ([(0.9, 100), (0.9, 100)], [(0.9, 100), (0.9, 100)]),  # equals do not beat each other
        ([(0.5, 70), (0.7, 60), (0.9, 80), (0.6, 50)], [(0.7, 60), (0.9, 80), (0.6, 50)]),
        ([], []),
    ],
)
def test_the_front(points, front):
    found = pareto_front(trials(*points))
    assert [(trial["accuracy"], trial["parameters"]) for trial in found] == front


def test_a_choice_that_was_tried_twice_stands_in_the_front_once():
    twice = [{"accuracy": 0.9, "parameters": 5, "spec_hash": "same"}] * 2
    assert pareto_front(twice) == twice[:1]


def test_no_trial_beats_one_of_the_front_and_each_other_one_is_beaten():
    draw = random.Random(0)
    points = trials(*((draw.randint(0, 20) / 20, draw.randint(1, 20)) for _ in range(60)))
    front = pareto_front(points)

    def beats(a, b):
        no_worse = a["accuracy"] >= b["accuracy"] and a["parameters"] <= b["parameters"]
        return no_worse and (a["accuracy"], a["parameters"]) != (b["accuracy"], b["parameters"])

    for point in points:
        assert any(beats(other, point) for other in front) != (point in front)
