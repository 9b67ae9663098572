"""Sections of tasks that are set in the text of a config: what is set, and what stays as it is."""

import pytest

from orchestrator.config.loading import recipe_text
from orchestrator.config.task_edits import with_task_sections
from orchestrator.config.yaml_document import read_yaml

BLOCK = """\
# my library
library: lib
tasks:
  # questions
  trec:  # six classes
    kind: text
    adapter:
      rank: 8   # the rank
      dropout: 0.1
    # where it lies
    source: {path: a.csv}
  mrpc: {kind: pair, source: {path: b.csv}}
train: {lr: 5e-3}
"""
ADAPTER = {"rank": 4, "shape": {"q": "4x8|8x4"}}


@pytest.mark.parametrize("text", [BLOCK, recipe_text("quickstart"), recipe_text("smollm2")])
def test_only_what_is_set_changes(text):
    before = read_yaml(text, "x").data
    sections = {task: {"adapter": ADAPTER, "train": {"lr": 0.01}, "head": "frozen"} for task in before["tasks"]}
    found = with_task_sections(text, sections, dict.fromkeys(before["tasks"], "by a search"))
    after = read_yaml(found, "x").data
    for name, task in before["tasks"].items():
        expected = task | {"adapter": task.get("adapter", {}) | ADAPTER, "head": "frozen"}
        assert after["tasks"][name] == expected | {"train": task.get("train", {}) | {"lr": 0.01}}
    assert {**after, "tasks": None} == {**before, "tasks": None}
    assert list(after["tasks"]) == list(before["tasks"])


def test_comments_stay_and_the_origin_is_one():
    found = with_task_sections(BLOCK, {"trec": {"adapter": ADAPTER}}, {"trec": "trial 3"})
    kept = ("# my library", "# questions", "# six classes", "# where it lies", "    # trial 3\n")
    assert all(comment in found for comment in kept)
    assert "adapter:\n      {rank: 4, dropout: 0.1, shape: {q: 4x8|8x4}}\n    # where" in found
