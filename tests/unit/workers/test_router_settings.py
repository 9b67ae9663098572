"""The config section of the router."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ttmoe.features import FeatureSpec
from workers.training.settings import RouterSettings


@pytest.mark.parametrize(
    ("layers", "trunk", "expected"),
    [
        ("all", 3, "all"),
        ("last", 3, "last"),
        ("embeddings", 3, "embeddings"),
        ("trunk", 3, (0, 1, 2, 3)),
        ("trunk", 0, (0,)),  # without a trunk only the embeddings are shared
        ("0-3", 1, (0, 1, 2, 3)),
        ("2-2", 1, (2,)),
        ("4-6", 0, (4, 5, 6)),
        ("10-12", 0, (10, 11, 12)),
        ([0, 4], 1, (0, 4)),
        ([4, 0], 1, (4, 0)),
    ],
)
def test_layers_name_hidden_states(layers, trunk, expected):
    assert RouterSettings(layers=layers).hidden_states(trunk, 12, 64) == expected


@pytest.mark.parametrize(
    ("layers", "width", "pooling", "expected"),
    [
        (2, 64, "both", "all"),
        (7, 384, "both", "all"),  # eight states
        (8, 384, "both", (0, 1, 2, 3, 5, 6, 7, 8)),
        (30, 576, "both", (0, 4, 9, 13, 17, 21, 26, 30)),  # SmolLM2-135M
        (32, 4096, "both", (0, 16, 32)),
        (32, 4096, "last", (0, 6, 13, 19, 26, 32)),
        (80, 8192, "both", (0, 40, 80)),
        (2, 8192, "both", "all"),
    ],
)
def test_auto_reads_some_states_evenly_spaced_and_of_wide_bases_fewer(layers, width, pooling, expected):
    assert RouterSettings(pooling=pooling).hidden_states(1, layers, width) == expected


@pytest.mark.parametrize("layers", ["3-1", "top", [], "", "0-", "-3", "1-2-3", "0 - 3", "trunks", "0,3", "0-3\n"])
def test_what_names_no_hidden_states_says_what_to_write(layers):
    with pytest.raises(ValidationError) as caught:
        RouterSettings(layers=layers)
    (error,) = caught.value.errors()
    assert error["loc"] == ("layers",)
    assert error["msg"].endswith("does not name hidden states")
    assert error["ctx"]["fix"] == "write auto, all, last, embeddings, trunk, 0-4 or [0, 4]"


@pytest.mark.parametrize("settings", [{"layers": [-1]}, {"layers": [0, "x"]}, {"unknown": 1}, {"unknown": -0.1},
                                      {"kind": "mlp"}, {"pooling": "cls"}, {"rows_per_task": 0}])  # fmt: skip
def test_other_values_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        RouterSettings(**settings)


def test_the_router_reads_everything_unless_it_is_told():
    settings = RouterSettings()
    spec = FeatureSpec(settings.hidden_states(2, 4, 64), settings.pooling)
    assert spec.indexes(4) == (0, 1, 2, 3, 4)
    assert spec.poolings == ("mean", "last")
    assert settings.unknown > 0


def test_a_router_takes_more_rows_in_turn():
    assert RouterSettings().portions(10_000) == [500, 1000, 2000, 5000]
    assert RouterSettings().portions(1000) == [500, 1000]
    assert RouterSettings().portions(1001) == [500, 1000, 2000]
    assert RouterSettings().portions(20) == [500]
    assert RouterSettings(rows_per_task=70).portions(10_000) == [70]
    assert (RouterSettings().most_rows, RouterSettings(rows_per_task=70).most_rows) == (5000, 70)
