"""YAML that remembers where it stands: data, and the line of every key.

Plain values are read as YAML 1.2 does, unlike PyYAML alone: ``yes``, ``no``, ``on`` and ``off`` are text
(labels, in a config like ours), ``5e-3`` is a number, ``0123`` and ``12:30`` are text (a commit id, a time).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ttmoe.errors import InputError

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"([-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
_RESOLVERS = [
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own attribute: its 1.1 rules are left out


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of either YAML would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first_letters in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first_letters)
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


@dataclass(frozen=True)
class YamlDocument:
    """One YAML file: its ``name`` in messages, its ``data``, and the nodes, which know their lines."""

    name: str
    data: dict[str, Any]
    root: yaml.MappingNode

    def has(self, path: Sequence[str | int]) -> bool:
        """Whether the file itself says something at ``path``."""
        return len(list(_lines(self.root, path))) == len(path)

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the key at ``path``, or of the nearest one above it that is there; the first is 1."""
        return [self.root.start_mark.line, *_lines(self.root, path)][-1] + 1


def _lines(node: yaml.Node, path: Sequence[str | int]) -> Iterator[int]:
    """The line of each step of ``path``, from the top, as far as the nodes go."""
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == str(step)]
            if not found:
                return
            key, node = found[-1]  # a merged key (<<) stands before the mapping's own
            yield key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            yield node.start_mark.line
        else:
            return


def read_yaml(text: str, name: str) -> YamlDocument:
    """Parse ``text``; raises InputError with file and line for broken YAML, repeated keys, or no mapping."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _refuse_repeats(root, name)
        # This unfolds merged keys in the nodes, too.
        data = loader.construct_document(root) if root is not None else None
    except yaml.YAMLError as error:
        raise _broken(error, name) from None
    if not isinstance(data, dict) or not isinstance(root, yaml.MappingNode):
        what = "the config is empty" if data is None else f"a config is a mapping of keys, not {data!r:.60}"
        raise InputError(what, where=f"{name}:1", fix="`ttmoe init` writes one to start from")
    return YamlDocument(name, data, root)


def parse_value(text: str) -> Any:
    """The YAML value of a ``--set``; raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def dump_yaml(data: Any) -> str:
    """``data`` as YAML text, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _refuse_repeats(root: yaml.Node, name: str) -> None:
    """PyYAML would silently keep the last one."""
    repeats = [(key.value, first + 1, key.start_mark.line + 1) for key, first in _repeats(root, set())]
    if repeats:
        said = "; ".join(f"`{key}` on lines {first} and {second}" for key, first, second in repeats)
        what = f"the same key twice in one mapping: {said}"
        raise InputError(what, where=f"{name}:{repeats[0][2]}", fix="keep one of them")


def _repeats(node: yaml.Node, seen: set[int]) -> Iterator[tuple[yaml.Node, int]]:
    if id(node) in seen:  # an alias may lead back to its own anchor
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeats(item, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in first:
                yield key, first[key.tag, key.value]
            elif isinstance(key, yaml.ScalarNode):
                first[key.tag, key.value] = key.start_mark.line
            yield from _repeats(value, seen)


def _broken(error: yaml.YAMLError, name: str) -> InputError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    tabs = "\\t" in problem
    fix = "indent with spaces, not tabs" if tabs else "check the indentation, colons and quotes there"
    where = f"{name}:{mark.line + 1}" if mark else name
    return InputError(f"not valid YAML: {problem}", where=where, fix=fix)
