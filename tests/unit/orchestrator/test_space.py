"""The space of a search: every point fits the base, and is there once with the parameters that are trained."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from orchestrator.config.loading import load_config
from orchestrator.config.search_settings import SearchSettings
from orchestrator.config.sections import AdapterSettings
from orchestrator.plan.expert_plan import adapter_spec
from orchestrator.plan.factor_choices import factor_choices
from orchestrator.plan.shape_choices import bounded_sums
from orchestrator.plan.space import SearchSpace
from ttmoe.adapter import AdapterSpec, Group, plan_groups
from ttmoe.errors import InputError
from ttmoe.methods import LowRank
from ttmoe.shapes import candidate_shapes
from workers.training.settings import TrainSettings

ROLES = ["q", "k", "v", "o", "up", "gate", "down"]


def bare(kind, config):
    with torch.device("meta"):
        return kind(config)


@pytest.fixture(scope="module")
def llama():
    """The body of Llama-3.1-8B."""
    return bare(LlamaModel, LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                                        num_attention_heads=32, num_key_value_heads=8, vocab_size=128256))  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    return bare(BertModel, BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6,
                                      num_attention_heads=12))  # fmt: skip


@pytest.fixture(scope="module")
def tiny_llama():
    """Widths of 12, 6 and 20, so that every space can be listed."""
    return bare(LlamaModel, LlamaConfig(hidden_size=12, intermediate_size=20, num_hidden_layers=3, vocab_size=8,
                                        num_attention_heads=2, num_key_value_heads=1))  # fmt: skip


def space_of(model, adapter=None, train=None, **search):
    settings = SearchSettings(**({"task": "t"} | search))
    return SearchSpace(model, adapter or AdapterSpec(), train or TrainSettings(), "trained", settings)


SPACES = [
    {"ranks": [1, 2, 2, 8, 64], "cores": [2, 5]},
    {"ranks": [1, 2], "cores": [2, 4], "space": {"shapes": "all"}},
    {"ranks": [1, 2, 8, 16], "cores": [3, 4], "space": {"per_role": True, "lr": [1e-3, 5e-3, 1e-3]}},
    {"ranks": [2, 8], "cores": [2, 4], "space": {"shapes": "all", "per_role": True, "targets": [["q"], ["k", "v"]]}},
    {
        "ranks": [1, 3],
        "cores": [2, 4],
        "space": {
            "targets": [["q", "v"], ["v", "q"], ["q", "down"]],
            "layers": ["all", "1-", "0-2", "1-1"],
            "alpha": [8, 16],
            "head": ["trained", "frozen"],
        },
    },
]


def trained(settings):
    """What the settings of a point train, as text: two points that agree in it would give the same expert."""
    cores = sorted((site.path, g.method.core_shapes) for g in settings.groups for site in g.sites)
    return str((cores, settings.adapter.alpha, settings.train.lr, settings.head))


@pytest.mark.parametrize("bound", [None, 300, 150])
@pytest.mark.parametrize("search", SPACES, ids=range(len(SPACES)))
def test_every_point_is_there_once_and_fits_the_base(tiny_llama, search, bound):
    """Against all combinations of all options, made without the space's own enumeration."""
    space = space_of(tiny_llama, max_parameters=bound, **search)
    points = list(space.points())
    names = space.choices()
    found = {str(sorted(point.items())) for point in points}
    assert len(found) == len(points) == space.size()
    assert len({trained(space.settings(point)) for point in points}) == len(points)
    for point in points:
        settings = space.settings(point)
        assert space.is_valid(point)
        assert plan_groups(tiny_llama, settings.adapter) == settings.groups
        assert settings.parameters == sum(g.method.parameters * len(g.sites) for g in settings.groups)
        assert settings.parameters <= (bound or 10**9)
        assert all(value in names[name] for name, value in point.items())
    rng, bare_space = random.Random(0), space_of(tiny_llama, **search)
    for _ in range(100):
        point = space.suggest(lambda _, options: rng.choice(options))
        assert str(sorted(point.items())) in found
        assert space.is_valid(point)
        point = bare_space.suggest(lambda _, options: rng.choice(options))
        assert space.is_valid(point) == (bare_space.settings(point).parameters <= (bound or 10**9))


def test_a_suggestion_above_the_bound_becomes_the_nearest_that_is_not(minilm):
    space = space_of(minilm, ranks=[1, 2, 4, 8], cores=[4, 6], max_parameters=7000, space={"alpha": [4, 8]})
    wanted = {"rank": 8, "factors": "2+2", "alpha": 8.0}
    assert space.suggest(lambda name, options: wanted[name]) == {"rank": 4, "factors": "3+3", "alpha": 8.0}
    wanted["rank"] = 1
    assert space.suggest(lambda name, options: wanted[name]) == wanted


def test_the_options_of_a_choice_never_change(tiny_llama):
    """Optuna refuses a choice whose options depend on earlier ones."""
    for search in SPACES:
        space, seen, rng = space_of(tiny_llama, max_parameters=200, **search), {}, random.Random(1)

        def choose(name, options, seen=seen, rng=rng):
            assert seen.setdefault(name, tuple(options)) == tuple(options)
            return rng.choice(options)

        for _ in range(60):
            space.suggest(choose)
        assert all(space.choices()[name] == options for name, options in seen.items())


def test_without_more_choices_a_point_is_a_rank_and_numbers_of_factors(minilm):
    adapter = AdapterSpec(method="lora", targets=("q", "up"), first_layer=2)
    search = SearchSettings(task="t", ranks=(2, 16), cores=(3, 4))
    space = SearchSpace(minilm, adapter, TrainSettings(lr=0.3), "frozen", search)
    expected = [{"rank": rank, "factors": factors} for rank in (2, 16) for factors in ("1+2", "2+1", "2+2")]
    assert list(space.points()) == expected
    settings = space.settings(expected[-1])
    assert (settings.adapter.method, settings.adapter.rank) == ("tt", 16)
    assert settings.adapter.shape == {"q": "24x16|16x24", "up": "24x16|32x48"}
    assert (settings.train.lr, settings.head, settings.adapter.first_layer) == (0.3, "frozen", 2)


@pytest.mark.parametrize("width", [2, 12, 30, 64, 72, 97, 384, 720, 1000, 1024, 14336])
def test_the_balanced_factors_are_those_of_the_smallest_sum(width):
    group = Group("q", LowRank(width, width, 1), ())
    for p, q in ((1, 1), (2, 2), (3, 2), (3, 3), (4, 4)):
        shapes = [s for s in candidate_shapes(width, width, 1, cores=(p + q, p + q)) if len(s.inputs) == p]
        best = min(shapes, key=lambda shape: (sum(shape.inputs + shape.outputs), str(shape)), default=None)
        options = [choice.options for choice in factor_choices([group], f"{p}+{q}", every=False)]
        assert ("|".join(option for (option,) in options) if all(options) else None) == (
            str(best).removesuffix("@1") if best else None
        )


def test_all_shapes_are_those_of_the_candidates_in_every_order(minilm):
    space = space_of(minilm, AdapterSpec(targets=("up",)), ranks=[4], cores=[4, 4], space={"shapes": "all"})
    shapes = [str(space.settings(point).groups[0].method.shape) for point in space.points()]
    every = candidate_shapes(384, 1536, 4, cores=(4, 4), ordered=True)
    assert sorted(shapes) == sorted(str(s) for s in every if len(s.inputs) == 2)


@pytest.mark.parametrize(("per_role", "bound"), [(False, None), (True, 60_000)])
def test_with_all_options_an_8b_llama_is_counted_and_sampled_without_a_list(llama, per_role, bound):
    more = {"shapes": "all", "per_role": per_role, "targets": [["q", "v"], ROLES], "layers": ["all", "16-"],
            "alpha": [4, 8, 16], "head": ["trained", "frozen"]}  # fmt: skip
    space = space_of(llama, ranks=[1, 2, 4, 8, 16], cores=[4, 10], max_parameters=bound, space=more)
    assert space.size() == 1_000_000
    points = space.sample(0, 5)
    assert len({str(point) for point in points}) == 5
    assert all(space.is_valid(point) for point in points)


def test_ranks_that_no_map_can_have_are_one_choice(tiny_llama):
    space = space_of(tiny_llama, AdapterSpec(targets=("v",)), ranks=[32, 2, 6, 8], cores=[2, 2])
    assert space.choices() == {"rank": (2, 6), "factors": ("1+1",)}


def test_roles_may_differ_and_the_shape_says_so(minilm):
    space = space_of(minilm, ranks=[2, 8], cores=[4, 4], space={"per_role": True})
    point = {"rank.q": 8, "factors.q": "2+2", "rank.v": 2, "factors.v": "2+2"}
    assert point in list(space.points())
    settings = space.settings(point)
    assert settings.adapter.rank == 8
    assert settings.adapter.shape == {"q": "24x16|16x24", "v": "24x16|16x24@2"}
    assert [group.method.rank for group in settings.groups] == [8, 2]


@pytest.mark.parametrize("search", SPACES, ids=range(len(SPACES)))
def test_a_config_can_contain_every_point(tiny_llama, search):
    """With these settings of `adapter`, a run trains the adapter of the point."""
    for point in space_of(tiny_llama, **search).sample(0, 10):
        adapter = space_of(tiny_llama, **search).settings(point).adapter
        layers = f"{adapter.first_layer}-" + ("" if adapter.last_layer is None else str(adapter.last_layer))
        keys = {name: getattr(adapter, name) for name in ("method", "targets", "rank", "alpha", "shape")}
        assert adapter_spec(AdapterSettings(layers=layers, **keys)) == adapter


def test_a_role_has_factors_only_where_it_is_adapted(minilm):
    more = {"per_role": True, "targets": [["q"], ["q", "v"]], "layers": ["all", "4-"], "alpha": [4, 8]}
    space = space_of(minilm, ranks=[2, 8], cores=[4, 4], space=more)
    names = {tuple(point) for point in space.points()}
    assert names == {
        ("targets", "layers", "rank.q", "factors.q", "alpha"),
        ("targets", "layers", "rank.q", "factors.q", "rank.v", "factors.v", "alpha"),
    }
    settings = space.settings({"targets": "q", "layers": "4-", "rank.q": 2, "factors.q": "2+2", "alpha": 4.0})
    assert (settings.adapter.targets, settings.adapter.first_layer, settings.adapter.alpha) == (("q",), 4, 4.0)
    assert space.size() == 2 * 2 * (2 + 4)


def test_options_that_depend_on_the_targets_have_names_of_their_own(tiny_llama):
    """A width of 20 has at most three factors, one of 6 two."""
    space = space_of(tiny_llama, ranks=[1], cores=[4, 6], space={"targets": [["q"], ["down"], ["v"]]})
    assert space.choices() == {
        "targets": ("q", "down", "v"),
        "rank": (1,),
        "factors": ("2+2", "2+3", "3+2", "3+3"),
        "rank[v]": (1,),
        "factors[v]": ("2+2", "3+2"),
    }


@pytest.mark.parametrize(
    ("point", "fine"),
    [
        ({"rank": 2, "factors": "2+2"}, True),
        ({"rank": 3, "factors": "2+2"}, False),
        ({"rank": 2}, False),
        ({"rank": 2, "factors": "2+2", "alpha": 8.0}, False),
        ({}, False),
    ],
)
def test_a_point_of_another_space_is_not_valid(minilm, point, fine):
    assert space_of(minilm, ranks=[2, 8]).is_valid(point) == fine


def test_the_learning_rate_falls_from_that_of_the_adapters_own_rank(minilm):
    def rates(**search):
        space = space_of(minilm, AdapterSpec(rank=8), TrainSettings(lr=4e-3), ranks=[2, 8, 32], cores=[4, 4], **search)
        return [space.settings(point).train.lr for point in space.points()]

    assert rates() == rates(space={"lr": "keep"}) == [4e-3] * 3
    assert rates(space={}) == [1.13e-2, 4e-3, 1.41e-3]
    assert rates(space={"lr": [1e-2, 1e-3]}) == [1e-2, 1e-3] * 3


def test_with_different_ranks_the_largest_decides_the_learning_rate(minilm):
    space = space_of(minilm, ranks=[2, 8], cores=[4, 4], space={"per_role": True})
    rates = {(p["rank.q"], p["rank.v"]): space.settings(p).train.lr for p in space.points()}
    assert rates == {(2, 2): 1.41e-2, (2, 8): 5e-3, (8, 2): 5e-3, (8, 8): 5e-3}


@pytest.mark.parametrize(
    ("search", "where", "what"),
    [
        ({"cores": [18, 19]}, "search.cores", "no shape with 18 to 19 cores fits linear maps of 384 to 384"),
        ({"space": {"layers": ["all", "4-9"]}}, "search.space.layers", "layers 4 to 9 are not a range"),
        ({"space": {"targets": [["q"], ["gate"]]}}, "search.space.targets", "'gate' matches no linear map"),
        ({"max_parameters": 10}, "search.max_parameters", "no point has at most 10 parameters; the smallest has"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(minilm, search, where, what):
    with pytest.raises(InputError) as caught:
        space_of(minilm, **search)
    assert caught.value.where == where
    assert what in caught.value.what
    assert caught.value.fix


def test_a_sample_is_repeatable_and_a_small_space_is_sampled_whole(minilm):
    large = space_of(minilm, space={"shapes": "all", "alpha": [1, 2, 4]})
    assert large.sample(3, 10) == large.sample(3, 10) != large.sample(4, 10)
    small = space_of(minilm, ranks=[2, 4], cores=[4, 4])
    assert sorted(point["rank"] for point in small.sample(0, 10)) == [2, 4]
    assert len(small.sample(0, 1)) == 1


@pytest.mark.parametrize("bound", [3, 7, 11, 30])
def test_bounded_sums_are_all_sums_up_to_the_bound(bound):
    lists = [[1, 2, 5], [1, 1, 4], [0, 3]]
    every = sorted(total for each in itertools.product(*lists) if (total := sum(each)) <= bound)
    assert sorted(bounded_sums(lists, bound, 100)) == every
    assert len(bounded_sums(lists, bound, 4)) >= min(4, len(every))


def test_the_recipe_of_the_papers_question_contains_the_papers_answer():
    """On Llama-3.2-1B, from its config alone: the published shapes at rank 5 have 33,920 parameters."""
    paper = ["base={hub: meta-llama/Llama-3.2-1B, max_length: 128}"]
    config = load_config("tune-paper", paper).config
    model = bare(LlamaModel, LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                                         num_attention_heads=32, num_key_value_heads=8, head_dim=64))  # fmt: skip
    adapter, train = adapter_spec(config.task_adapter("trec")), config.search_train("trec")
    space = SearchSpace(model, adapter, train, config.task_head("trec"), config.search)
    point = {"rank.q": 5, "factors.q": "4+4", "inputs.q.4": "16x8x4x4", "outputs.q.4": "4x4x8x16",
             "rank.v": 5, "factors.v": "4+3", "inputs.v.4": "16x16x4x2", "outputs.v.3": "2x16x16",
             "alpha": 16.0}  # fmt: skip
    assert space.is_valid(point)
    settings = space.settings(point)
    assert (settings.parameters, settings.train.lr, settings.adapter.alpha) == (33_920, 5e-3, 16.0)
    assert space.size() == 1_000_000
    minilm = bare(BertModel, BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6))
    assert SearchSpace(minilm, adapter, train, "trained", config.search).size() == 1_000_000
