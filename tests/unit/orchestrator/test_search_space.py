import random

import pytest
from torch import nn

from orchestrator.config import Search
from orchestrator.search_space import SHAPES_PER_FORM, chosen_adapter, pareto_front, search_space
from ttmoe.adapter import AdapterSpec, Group, plan_groups
from ttmoe.errors import InputError
from ttmoe.methods import LowRank
from ttmoe.shapes import TTShape


def group(role, inputs, outputs):
    return Group(role, LowRank(inputs, outputs, 4), ())


def search(**more):
    return Search(task="t", **more)


def test_the_space_names_ranks_and_shapes_that_fit():
    space = search_space([group("q", 384, 384), group("v", 384, 128)], search(ranks=(2, 8), cores=(4, 5)))
    assert list(space) == ["rank", "shape.q", "shape.v"]
    assert space["rank"] == [2, 8]
    for role, size in (("q", (384, 384)), ("v", (384, 128))):
        shapes = [TTShape.parse(f"{text}@2") for text in space[f"shape.{role}"]]
        assert {(shape.in_features, shape.out_features) for shape in shapes} == {size}
        assert all(4 <= len(shape.inputs) + len(shape.outputs) <= 5 for shape in shapes)
        forms = [(len(shape.inputs), len(shape.outputs)) for shape in shapes]
        assert max(forms.count(form) for form in forms) <= SHAPES_PER_FORM
        assert {(2, 2), (2, 3), (3, 2)} <= set(forms)
        assert len(set(space[f"shape.{role}"])) == len(shapes)


def test_the_space_does_not_depend_on_the_order_in_which_shapes_are_found():
    groups = [group("q", 384, 384)]
    space = search_space(groups, search())
    assert space == search_space(groups, search())
    assert space["shape.q"] == sorted(space["shape.q"])


def test_a_width_without_such_a_shape_is_refused():
    with pytest.raises(InputError) as caught:
        search_space([group("q", 7, 7)], search(cores=(4, 6)))
    assert caught.value.where == "search.cores"
    assert caught.value.what == "no shape of 7 to 7 features has 4 to 6 cores"
    assert caught.value.fix


def test_a_choice_becomes_an_adapter_that_can_be_planned():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            from transformers import BertConfig, BertModel

            config = BertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=5)
            self.inner = BertModel(config)

    body = Body().inner
    spec = AdapterSpec(targets=("q", "up"))
    space = search_space(plan_groups(body, spec), search(ranks=(2, 4)))
    draw = random.Random(0)
    for _ in range(5):
        choice = {name: draw.choice(options) for name, options in space.items()}
        planned = plan_groups(body, AdapterSpec(targets=spec.targets, **chosen_adapter(choice)))
        found = {g.role: str(g.method).removeprefix("tt:") for g in planned}
        assert found == {role: f"{choice[f'shape.{role}']}@{choice['rank']}" for role in ("q", "up")}


def trials(*pairs):
    return [{"accuracy": accuracy, "parameters": parameters} for accuracy, parameters in pairs]


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
    assert pareto_front(trials(*points)) == trials(*front)


def test_no_trial_beats_one_of_the_front_and_each_other_one_is_beaten():
    draw = random.Random(0)
    points = trials(*((draw.randint(0, 20) / 20, draw.randint(1, 20)) for _ in range(60)))
    front = pareto_front(points)

    def beats(a, b):
        no_worse = a["accuracy"] >= b["accuracy"] and a["parameters"] <= b["parameters"]
        return no_worse and a != b

    for point in points:
        assert any(beats(other, point) for other in front) != (point in front)
