"""A library that an earlier version trained: the current code retrains only what is listed, and predicts the same.

``tests/upgrade/library-<version>.tar.xz`` holds what `ttmoe run library.yaml` of that version left in ``/srv/library``:
base, rows, config and ``runs/`` (without caches of tokens, trunk states and features, and without Ray Tune's own
folder), and ``answers.jsonl``, what `ttmoe predict --file questions.jsonl` printed there.

A change that makes the code train differently raises a number in ``RECIPES`` and then retrains. It lists the work here,
in RETRAINED, with the reason that `ttmoe plan` shows.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from commands import here, open_registry, succeeded, versions
from killed_driver import units_inline

pytestmark = pytest.mark.integration

ARCHIVES = sorted((Path(__file__).parents[1] / "upgrade").glob("library-*.tar.xz"))
RECORDED_IN = "/srv/library"
# By archive: what the current code trains again, as `task, router or search: why`.
RETRAINED: dict[str, list[str]] = {
    # Experts draw their dropout otherwise; the identity of a search no longer contains what its trials replace.
    "library-0.1.0.tar.xz": [
        *(f"{task}: recipe 2 -> 3 (the code trains differently)" for task in ("colours", "animals", "warmth")),
        "router: v1 was trained for other experts (animals, colours, warmth)",
        "search: no finished search",
    ]
}
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the library into ``folder`` and point the recorded absolute addresses there."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    store = sqlite3.connect(folder / "runs" / "mlflow.db")
    with store:
        for table, column in ADDRESSES:
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (RECORDED_IN, str(folder)))
    store.close()
    for model in folder.rglob("MLmodel"):
        model.write_text(model.read_text().replace(RECORDED_IN, str(folder)))
    return folder


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda archive: archive.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked library; its archive's name is in ``archive.txt``."""
    folder = unpack(request.param, tmp_path_factory.mktemp("upgrade"))
    (folder / "archive.txt").write_text(request.param.name)
    return folder


def listed(library: Path) -> dict[str, str]:
    """Return what is trained again of this library, and why."""
    lines = RETRAINED[(library / "archive.txt").read_text()]
    return {name: why for name, _, why in (line.partition(": ") for line in lines)}


def plan(library: Path, *settings: str) -> dict[str, Any]:
    return json.loads(succeeded(here(library, "plan", "library.yaml", "--json", *settings)).out)


def test_there_is_an_archive() -> None:
    assert [archive.name for archive in ARCHIVES] == list(RETRAINED)


def test_nothing_is_retrained_but_what_is_listed(library: Path) -> None:
    found = plan(library)
    work = {**found["experts"], "router": found["router"], "search": found["search"]}
    retrained = {name: part["why"] for name, part in work.items() if part["state"] != "cached"}
    assert retrained == listed(library)


def test_a_changed_setting_retrains_that_expert_and_the_router(library: Path) -> None:
    """The test above can fail: identities are compared, not just names."""
    before, found = (plan(library, *more) for more in ((), ("--set", "tasks.animals.train.steps=31")))
    changed = {name for name in found["experts"] if found["experts"][name] != before["experts"][name]}
    assert changed == {"animals"}
    assert found["experts"]["animals"]["state"] == "changed"
    assert "train.steps 30 -> 31" in found["experts"]["animals"]["why"]
    assert found["router"]["state"] == "stale"
    assert found["router"]["spec_hash"] != before["router"]["spec_hash"]


def test_every_expert_is_verified(library: Path) -> None:
    done = succeeded(here(library, "experts", "verify"))
    assert done.out.split("\n")[:3] == [f"{task} v1: ok" for task in ("animals", "colours", "warmth")]


def test_predict_answers_the_same(library: Path) -> None:
    succeeded(here(library, "predict", "--file", "questions.jsonl", "--out", "again.jsonl"))
    # 0.1.0 wrote all digits of probabilities.
    assert_same_answers(read_lines(library / "again.jsonl"), read_lines(library / "answers.jsonl"), tolerance=6e-5)


def test_mlflow_loads_the_router_and_answers_the_same(library: Path) -> None:
    registry = open_registry(library / "runs")
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about type hints of its own
        import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(registry.fetch(registry.router("tiny"))))
    rows = read_lines(library / "questions.jsonl")
    answers = model.predict(pd.DataFrame(rows)).to_dict("records")
    found = [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]
    assert_same_answers(found, read_lines(library / "answers.jsonl"))


def test_a_run_trains_what_is_listed_once_and_keeps_the_earlier_versions(library: Path) -> None:
    """The last test: it changes the library."""
    again, root, run = listed(library), library / "runs", ("run", "library.yaml", "--set", "search=null")
    before = versions(root)
    with units_inline():
        succeeded(here(library, *run))
    after = versions(root)
    assert after == {name: count + (name.removeprefix("tiny.") in again) for name, count in before.items()}
    assert "To do: nothing" in succeeded(here(library, *run)).out
    assert versions(root) == after
    verified = succeeded(here(library, "experts", "verify", "--all")).out
    assert verified.count(": ok") == sum(after.values()) - after["tiny.router"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_answers(found: list[dict[str, Any]], wanted: list[dict[str, Any]], *, tolerance: float = 1e-6) -> None:
    """Equal but for the last digits of probabilities, which differ between processors."""
    assert len(found) == len(wanted)
    for answer, expected in zip(found, wanted, strict=True):
        numbers = {key: expected.pop(key) for key in ("confidence", "routing", "scores")}
        for key, value in numbers.items():
            assert answer.pop(key) == pytest.approx(value, rel=1e-3, abs=tolerance)
        assert answer == expected
