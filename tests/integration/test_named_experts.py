"""``ttmoe run`` on a config that names experts of the registry: they are routed to as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from commands import cells, here, open_registry, succeeded
from killed_driver import units_inline
from test_run import CONFIG, write_library

from orchestrator import api

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(base_folder, fresh_store, tmp_path_factory) -> Path:
    """A library of two trained experts; its expert of colours is also imported as that of a task without labels."""
    folder = write_library(tmp_path_factory.mktemp("named"), base_folder, CONFIG, fresh_store)
    run(folder)
    succeeded(here(folder, "experts", "export", "colours", "exported"))
    labels = ("--labels", "red,green,blue")
    done = succeeded(here(folder, "experts", "import", "exported", "--task", "hues", *labels))
    assert "name it in the config (tasks.hues.expert: {version: 1}) and run `ttmoe run CONFIG`" in done.out
    rows = [{"text": f"south1 {text} south1"} for text, _ in tiny.sentences(240, tiny.COLOURS, "north")]
    tiny.write_rows(folder / "hues.jsonl", rows)
    return folder


HUES = {"kind": "text", "expert": {"alias": "candidate"}, "routing_rows": {"path": "hues.jsonl"},
        "columns": {"text": "text"}}  # fmt: skip


def run(home: Path, **tasks: dict[str, Any]) -> str:
    """Run the config with other entries of these tasks; return the output."""
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    for task, entry in tasks.items():
        config["tasks"][task] = config["tasks"].get(task, {}) | entry
    (home / "named.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with units_inline():
        return succeeded(here(home, "run", "named.yaml")).out


def evaluation(home: Path) -> dict[str, Any]:
    registry = open_registry(home / "runs")
    return json.loads((registry.fetch(registry.router("tiny")) / "evaluation.json").read_text())


def champions(home: Path) -> dict[str, int]:
    return {each.task: each.version for each in open_registry(home / "runs").experts("tiny")}


def test_an_imported_expert_joins_with_rows_that_have_no_labels(home):
    out = run(home, hues=HUES)
    assert "Cached: colours, animals, hues" in out
    found = evaluation(home)
    test = found["tasks"]["hues"]
    assert test["routed_right"] > 0.9 * test["rows"]
    assert (test["labelled"], test["alone"]) == (False, None)
    of_labelled = [found["tasks"][task] for task in ("colours", "animals")]
    mean = sum(each["answered_right"] / each["rows"] for each in of_labelled) / 2
    assert found["metrics"]["test.routed_accuracy"] == pytest.approx(mean)
    # The expert's labels and no accuracy; as LoRA of rank 4 with its head.
    assert cells(out, "hues") == ["hues", "3", "2,048", "8,192", "195"]
    assert f"{mean:.3f}" in cells(out, "mean")
    pages = [page.read_text() for page in (home / "runs").rglob("report.html")]
    assert any("<td>hues<td" in page for page in pages)
    answer = succeeded(here(home, "predict", "south1 red north1 south1", "--json")).out
    assert json.loads(answer)["task"] == "hues"
    assert champions(home)["hues"] == 1
    assert "To do: nothing" in run(home, hues=HUES)
    rows = (home / "hues.jsonl").read_text().splitlines(keepends=True)
    (home / "hues.jsonl").write_text("".join(rows[:200]))
    assert "To do: the router" in run(home, hues=HUES)  # other rows, another router
    assert sum(map(sum, evaluation(home)["confusion"])) < sum(map(sum, found["confusion"]))
    done = here(home, "experts", "compress", "hues", "--config", "named.yaml", "--parameters", "900")
    assert (done.code, "its rows have no labels" in done.err) == (2, True)


def test_a_twin_is_found_by_the_labels_of_the_expert_where_its_rows_have_none(home):
    """The rows and the expert of colours under another name."""
    twin = HUES | {"routing_rows": {"path": "colours.jsonl"}}
    out = run(home, hues=twin)
    assert "colours, hues look like one task in several data sets" in out
    assert evaluation(home)["twins"] == [["colours", "hues"]]


def test_a_smaller_version_that_is_named_is_tested_and_stays_the_champion(home):
    succeeded(here(home, "experts", "compress", "colours", "--config", "tiny.yaml", "--parameters", "600"))
    out = run(home, colours={"expert": {"version": 2}, "train": {"steps": 70}})  # which a trained one would have
    assert "Cached: colours, animals" in out
    assert champions(home)["colours"] == 2
    test = evaluation(home)["tasks"]["colours"]
    small = next(each for each in open_registry(home / "runs").experts("tiny") if each.task == "colours")
    assert test["alone"] == pytest.approx(test["alone_right"] / test["rows"])
    assert cells(out, "colours")[3] == f"{test['alone']:.3f}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert api.run("named.yaml").experts["colours"].accuracy == pytest.approx(test["alone"])
    other = {"expert": {"version": 2}, "label": {"column": "label", "names": {"red": "red", "blue": "blue"}},
             "where": [{"column": "label", "not_in": ["green"]}]}  # fmt: skip
    assert evaluation(home)["tasks"]["colours"]["rows"] > rows_tested(home, other)
    done = here(home, "experts", "compress", "colours@v1", "--config", "named.yaml", "--parameters", "600")
    assert (done.code, "has the labels blue, green, red, in this order" in done.err) == (2, True)
    assert "To do: nothing" in run(home, colours={"expert": {"alias": "champion"}})
    succeeded(here(home, "experts", "promote", "colours@v1"))
    assert "the router" in run(home, colours={"expert": {"alias": "champion"}})
    assert champions(home)["colours"] == 1
    assert small.spec_hash not in str(evaluation(home))


def rows_tested(home: Path, colours: dict[str, Any]) -> int:
    run(home, colours=colours)
    return int(evaluation(home)["tasks"]["colours"]["rows"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"expert": {"version": 7}}, ["has no expert v7", "tasks.colours.expert", "registered: v1"]),
        ({"expert": {"alias": "best"}}, ["has no expert @best"]),
        ({"expert": {"version": 1}, "label": {"column": "label", "names": {"red": "rot"}}}, ["no label rot", "red"]),
        ({"expert": {"version": 1}, "kind": "pair", "columns": {"first": "text", "second": "text"}},
         ["v1 is of kind text", "tasks.colours.kind"]),
        ({"expert": {}}, ["a version or an alias"]),
    ],
)  # fmt: skip
def test_what_cannot_be_routed_to_is_refused_by_plan(home, entry, said):
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    config["tasks"]["colours"] |= entry
    if "names" in entry.get("label", {}):
        config["tasks"]["colours"]["label"]["names"] |= {"green": "green", "blue": "blue"}
    (home / "refused.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = here(home, "plan", "refused.yaml")
    assert done.code == 2
    for part in said:
        assert part in done.err
