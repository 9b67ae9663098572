"""``ttmoe tune --apply``: a copy with exactly the recommendation, or an error before the search."""

from __future__ import annotations

import pytest

from orchestrator.config.loading import load_config
from orchestrator.search.applying import check_target, write_recommended
from ttmoe.errors import InputError

HEAD = """\
library: lib
base: {folder: base}
search: {tasks: all, method: truncate}
"""
PLAIN = """\
tasks:
  a:  # the first
    kind: text
    source: {path: a.csv}
    columns: {text: text}
    label: {column: label}
    adapter: {rank: 8, alpha: 16}
  b: {kind: text, source: {path: b.csv}, columns: {text: text}, label: {column: label}}
"""
MERGED = """\
tasks:
  a: &t
    kind: text
    source: {path: a.csv}
    columns: {text: text}
    label: {column: label}
    adapter: {rank: 8, alpha: 16}
  b:
    <<: *t
    source: {path: b.csv}
"""
ALIASED = PLAIN.replace("adapter: {", "adapter: &ad {").replace("label}}", "label}, adapter: *ad}")


def config(tmp_path, text, overrides=()):
    path = tmp_path / "lib.yaml"
    path.write_text(HEAD + text)
    return load_config(path, overrides)


def records(loaded):
    sections = {"adapter": {"method": "tt", "rank": 2, "shape": {"q": "2x4|4x2"}}, "train": {"lr": 0.0025}}
    winner = {"seeds": 4, "trials": [3], "parameters": 128, "accuracy": 0.9, "sections": sections}
    return [{"task": task, "winner": winner} for task in loaded.config.searched_tasks]


def test_the_copy_has_the_recommendation_and_what_the_config_had(tmp_path):
    loaded = config(tmp_path, PLAIN, ["search.steps=5", "storage.root=elsewhere"])
    check_target(loaded, tmp_path / "copy.yaml")
    write_recommended(loaded, records(loaded), tmp_path / "copy.yaml")
    copy = load_config(tmp_path / "copy.yaml").config
    assert [copy.task_adapter(task).rank for task in "ab"] == [2, 2]
    assert [copy.task_adapter(task).alpha for task in "ab"] == [16, loaded.config.task_adapter("b").alpha]
    assert "# the first" in (text := (tmp_path / "copy.yaml").read_text())
    assert text.count("# ttmoe tune, trial 3 of") == 1  # a task in flow style has no room for it


@pytest.mark.parametrize("text", [MERGED, ALIASED])
def test_a_text_that_cannot_be_changed_in_place_is_refused_before_the_search(tmp_path, text):
    loaded = config(tmp_path, text)
    with pytest.raises(InputError, match="anchors, aliases, merged keys"):
        check_target(loaded, tmp_path / "copy.yaml")
    with pytest.raises(InputError, match="anchors, aliases, merged keys"):
        write_recommended(loaded, records(loaded), tmp_path / "copy.yaml")
    assert not (tmp_path / "copy.yaml").exists()


@pytest.mark.parametrize("override", ["adapter.alpha=32", "tasks.a.train.steps=5", "train.lr=1e-3"])
def test_what_the_copy_would_not_have_is_refused(tmp_path, override):
    loaded = config(tmp_path, PLAIN, [override])
    with pytest.raises(InputError, match=f"would not have `--set {override.partition('=')[0]}`"):
        check_target(loaded, tmp_path / "copy.yaml")
