"""``ttmoe tune --dry-run``: what it says of a space and of the training that a search needs."""

from __future__ import annotations

import io
import json

import pytest
from library_plan import FakeRegistry, plan_of, version_of
from rich.console import Console

from orchestrator.plan.library_state import read_library_state
from orchestrator.plan.rank_space import rank_space
from orchestrator.pool.capacity import GB, Node
from orchestrator.search.search_forecast import forecast_search
from orchestrator.search.space_screen import show_space
from ttmoe.base import empty_body

NODES = [Node("one", 4, 0, 32 * GB)]
TRIED = {"rank": 2, "factors": "2+2"}


@pytest.fixture
def forecast(base_folder, tmp_path):
    def make(method="tpe", earlier=None, times=False, spaces=None, resources=None, **search):
        search = {"task": "colours"} | search
        plan = plan_of(base_folder, tmp_path, nodes=NODES, search=search, resources=resources or {})
        versions = [version_of(plan, "colours", steps=40, seconds_training=8.0, seconds_job=10.0)] if times else []
        state = read_library_state(plan, FakeRegistry(versions))
        return forecast_search(plan, state, method, earlier, spaces and spaces(plan))

    return make


def screen(forecast, width=80, **more):
    console = Console(file=io.StringIO(), width=width)
    show_space(forecast, console, **more)
    return console.file.getvalue()


def line(text, label):
    return next(row for row in text.splitlines() if row.startswith(label))[11:].strip()


def test_a_small_space_is_shown_with_what_is_cached(forecast):
    text = screen(forecast(trials=20, earlier={"colours": [TRIED, {"rank": 3, "factors": "2+2"}]}))
    assert "colours: 16 points" in text
    assert "rank      2, 4, 8, 16" in text
    assert "factors   2+2, 2+3, 3+2, 3+3" in text
    assert line(text, "trials") == "the space of colours has 16 points, fewer than the 20 trials: each is tried once"
    assert "1 of these already ended" in text
    assert line(text, "training") == "about 1,500 optimizer steps"
    assert line(text, "time") == "unknown: no finished training on this base"


def test_a_sample_shows_each_point_with_its_parameters(forecast):
    text = screen(forecast(ranks=[2, 8], cores=[4, 4], earlier={"colours": [TRIED]}))
    rows = [row.split() for row in text.split("all points")[1].splitlines()[4:6]]
    assert rows == [["2", "8x8|8x8", "384", "4.7%", "0.005", "cached"], ["8", "8x8|8x8", "4,608", "56.2%", "0.005"]]


LARGE = {
    "shapes": "all",
    "per_role": True,
    "targets": [["q", "v"], ["q", "k", "v", "o", "up"]],
    "layers": ["all", "1-"],
    "alpha": [8, 16],
}


@pytest.mark.parametrize("width", [80, 160])
def test_a_large_space_fits_the_screen(forecast, width):
    text = screen(forecast(task=None, tasks="all", max_parameters=2000, space=LARGE, confirm=3), width)
    assert "colours, animals: over 1,000,000 points each" in text
    assert "rank (q, v, k, o, up)" in text
    assert "3 output factors (up)" in text
    assert "q,v; q,k,v,o,up" in text
    tables = text.split("method ")[0].splitlines()
    assert max(len(row.rstrip()) for row in tables) <= width
    assert not any("…" in row for row in tables)
    assert "at most 2,000 parameters" in line(text, "bound")
    assert line(text, "trials") == "8 for each task (colours, animals)"
    assert "up to 4 trials of each task with 3 more seeds" in line(text, "confirm")


@pytest.mark.parametrize(
    ("search", "steps"),
    [
        ({"trials": 9}, 900),
        ({"trials": 9, "steps": 90, "rungs": {"first": 10}}, 9 * 10 + 3 * 20 + 1 * 60),
        ({"trials": 9, "confirm": 2, "finalists": 3}, 900 + 600),
        ({"trials": 9, "budget": {"steps": 700}}, 700),
        ({"trials": 9, "task": None, "tasks": "all"}, 2 * (900 + 100)),  # and what is recommended for the other one
        ({"method": "truncate"}, 100 + 3 * 25),  # the four ranks of the default
        ({"method": "truncate", "budget": {"trials": 2}, "confirm": 1}, 100 + 3 * 25 + 200 + 4 * 2 * 100),
    ],
)
def test_the_steps_of_the_training(forecast, search, steps):
    search = search.copy()
    method = search.pop("method", "tpe")
    ranks = (lambda plan: {"colours": rank_space(plan, "colours", empty_body(plan.base))}) if method != "tpe" else None
    assert forecast(method, spaces=ranks, **search).steps == steps


def test_the_time_follows_from_earlier_trainings_and_the_trials_in_parallel(forecast):
    """0.2 seconds for each step."""
    assert forecast(times=True, trials=8).seconds == pytest.approx(800 * 0.2 / 4)
    assert forecast(times=True, trials=8, max_parallel=2).seconds == pytest.approx(800 * 0.2 / 2)
    assert forecast(times=True, trials=8, resources={"max_parallel": 1}).seconds == pytest.approx(800 * 0.2)
    assert forecast(times=True, trials=8, budget={"steps": 400}).seconds == pytest.approx(400 * 0.2 / 4)


def test_each_method_says_what_it_does(forecast):
    truncate = screen(forecast("truncate", ranks=[1, 4, 2]))
    assert line(truncate, "method") == "truncate: trains one expert of rank 4 for each task and cuts it to 2, 1"
    assert "\ntrials" not in truncate
    assert line(screen(forecast("grid", trials=3)), "trials") == "the first 3 points; set search.trials to 16 for all"
    rungs = line(screen(forecast(rungs={"first": 20, "factor": 2})), "rungs")
    assert rungs == "20, 40, 80, 100 steps; one of 2 trials is trained further"


def test_another_space_can_be_shown(forecast):
    from orchestrator.plan.space import plan_space

    def half(plan):
        space = plan_space(plan, "colours")
        space.size = lambda limit: 1
        space.sample = lambda seed, number: [TRIED]
        return {"colours": space}

    assert "colours: 1 point\n" in "\n".join(map(str.rstrip, screen(forecast(spaces=half)).splitlines()))


def test_the_json_has_the_same_facts(forecast):
    content = json.loads(screen(forecast(trials=20, times=True, earlier={"colours": [TRIED]}), as_json=True))
    (space,) = content["spaces"]
    assert (space["tasks"], space["size"], space["counted_to_end"], space["cached"]) == (
        ["colours"],
        16,
        True,
        {"colours": 1},
    )
    assert space["choices"]["rank"] == [2, 4, 8, 16]
    first = space["sample"][0]
    assert {"point", "shapes", "parameters", "lora_share", "lr", "is_cached"} == set(first)
    assert content["settings"]["trials"] == 20
    assert (content["method"], content["rungs"], content["steps"], content["at_once"]) == ("tpe", [100], 1500, 4)
    assert content["seconds"] == 75.0
    large = json.loads(screen(forecast(space=LARGE), as_json=True))
    assert (large["spaces"][0]["size"], large["spaces"][0]["counted_to_end"]) == (1_000_000, False)
