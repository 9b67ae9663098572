"""The two YAML parsers: libyaml's, which reads, and PyYAML's own, which explains."""

from __future__ import annotations

import pytest
import yaml

from orchestrator.config import yaml_document
from orchestrator.config.loading import STARTER, recipe_names, recipe_text
from orchestrator.config.yaml_document import _FastLoader, _Loader, _parse, read_yaml
from ttmoe.errors import InputError

TRICKY = """\
# values that YAML 1.1 and 1.2 read differently
a: {yes: no, on: off, time: 12:30, id: 0123, hex: 0x1F, day: 2024-01-01}
b: [5e-3, -.5, .inf, true, ~, null, "5e-3", 'true', é 😀]
shared: &shared {lr: 0.1, steps: 3}
c:
  <<: *shared
  lr: 0.2
  text: |
    two
    lines
  folded: >-
    one
    line
again: *shared
empty:
"""


def lines(node):
    """Return the node tree as values: tag, first line, content."""
    if isinstance(node, yaml.ScalarNode):
        return node.tag, node.start_mark.line, node.value
    parts = [lines(part) for child in node.value for part in (child if isinstance(child, tuple) else [child])]
    return node.tag, node.start_mark.line, parts


@pytest.mark.parametrize("text", [TRICKY, *map(recipe_text, [*recipe_names(), STARTER])])
def test_both_parsers_read_the_same_values_and_lines(text):
    (fast_root, fast), (root, data) = _parse(text, "", _FastLoader), _parse(text, "", _Loader)
    assert fast == data
    assert lines(fast_root) == lines(root)


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="this PyYAML is built without libyaml")
def test_the_slow_parser_is_used_for_messages_only(monkeypatch):
    used = []
    original = _parse
    monkeypatch.setattr(yaml_document, "_parse", lambda *args: used.append(args[2]) or original(*args))
    assert read_yaml("a: 1\n", "x").data == {"a": 1}
    assert issubclass(used.pop(), yaml.CSafeLoader)
    with pytest.raises(InputError, match="expected ',' or ']', but got ':'") as caught:
        read_yaml("a: [1\nb: 2\n", "x")
    assert caught.value.where == "x:2"
    assert used == [_FastLoader, _Loader]


def test_keys_are_compared_in_every_mapping_once():
    repeated = "a: &x {k: 1, k: 2}\nb: [*x, {l: 1, m: {n: 1, n: 2}}]\n? {p: 1, p: 2}\n: *x\n"
    with pytest.raises(InputError) as caught:
        read_yaml(repeated, "x")
    assert caught.value.what.endswith(": `k` on lines 1 and 1; `n` on lines 2 and 2; `p` on lines 3 and 3")


def test_a_mapping_may_contain_itself():
    assert list(read_yaml("a: &x {self: *x}\n", "x").data["a"]) == ["self"]
