"""Read YAML with the line of every key, and write YAML.

Plain values follow YAML 1.2 more closely than PyYAML does: ``yes``, ``no``, ``on`` and ``off`` are text (labels, in
these configs), ``5e-3`` is a number, and ``0123``, ``12:30`` and ``2024-01-01`` are text (a commit id, a time, a date).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
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
    """Loader with the rules above."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's attribute; empty, so without the YAML 1.1 rules


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same loader on libyaml, where PyYAML has it: five times as fast, with shorter messages."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which a reader of YAML 1.1 or 1.2 would take for another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first_letters in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first_letters)
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


@dataclass(frozen=True)
class YamlDocument:
    """Content of a YAML file with the position of its keys.

    Attributes:
        name: Name of the file in messages.
        data: Content as Python values.
        root: PyYAML's node tree, which holds the lines.
        is_file: Whether messages give lines; those of a config from Python mean nothing to its user.
    """

    name: str
    data: dict[str, Any]
    root: yaml.MappingNode
    is_file: bool = True

    def has(self, path: Sequence[str | int]) -> bool:
        """Return whether the file contains a key or list item at ``path``."""
        return len(list(_lines(self.root, path))) == len(path)

    def line(self, path: Sequence[str | int]) -> int:
        """Return the line of the key at ``path``, or of its nearest parent in the file; the first line is 1."""
        return [self.root.start_mark.line, *_lines(self.root, path)][-1] + 1

    def place(self, path: Sequence[str | int]) -> str:
        """Return the file and the line of the key at ``path`` as text."""
        return f"{self.name}:{self.line(path)}" if self.is_file else self.name


def _lines(node: yaml.Node, path: Sequence[str | int]) -> Iterator[int]:
    """Yield the line of each step of ``path``, until a step does not exist; the first line is 0."""
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == str(step)]
            if not pairs:
                return
            key, node = pairs[-1]  # keys from a merge (<<) come before the mapping's own keys
            yield key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            yield node.start_mark.line
        else:
            return


def read_yaml(text: str, name: str) -> YamlDocument:
    """Parse the text of a config.

    Args:
        text: YAML text.
        name: Name of the file in messages.

    Raises:
        InputError: If the text is not valid YAML, repeats a key, or is not a mapping; with file and line.
    """
    try:
        root, data = _parse(text, name, _FastLoader)
    except yaml.YAMLError:
        try:
            root, data = _parse(text, name, _Loader)
        except yaml.YAMLError as error:
            raise _syntax_error(error, name) from None
    if not isinstance(data, dict) or not isinstance(root, yaml.MappingNode):
        what = "the config is empty" if data is None else f"a config must be a mapping of keys, not {data!r:.60}"
        raise InputError(what, where=f"{name}:1", fix="write a config to start from with `ttmoe init`")
    return YamlDocument(name, data, root)


def to_document(data: Mapping[str, Any], name: str) -> YamlDocument:
    """Return a config that was made in Python as a document.

    Args:
        data: Content of the config; paths and tuples in it become text and lists.
        name: Name of the config in messages.

    Raises:
        InputError: If a value has no form in YAML.
    """
    try:
        text = dump_yaml(_plain(data))
    except yaml.YAMLError as error:
        what = f"a value has a type that a config cannot have: {error.args[-1]!r:.60}"
        raise InputError(what, where=name, fix="use texts, numbers, booleans, lists and mappings") from None
    return replace(read_yaml(text, name), is_file=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, PurePath) else value


def _parse(text: str, name: str, loader_class: type) -> tuple[yaml.Node | None, Any]:
    """Return the node tree and the content of a document."""
    loader = loader_class(text)
    root = loader.get_single_node()
    if repeated_keys := sorted(_repeated_keys(root, set())):
        raise _repeated_keys_error(repeated_keys, name)
    # Constructing the document also inserts merged keys (<<) into the nodes.
    return root, loader.construct_document(root) if root is not None else None


def _repeated_keys(node: yaml.Node | None, seen: set[int]) -> Iterator[tuple[int, int, str]]:
    """Yield keys that a mapping repeats, of which PyYAML silently keeps the last, once for each mapping.

    Args:
        node: A node; an alias makes one node the child of several, or of itself.
        seen: Ids of the nodes that were looked at; it is extended.

    Yields:
        Line of the repetition, line of the first, and the key.
    """
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    first_lines: dict[tuple[str, str], int] = {}
    for child in node.value:
        key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if (key.tag, key.value) in first_lines:
                yield line, first_lines[key.tag, key.value], key.value
            first_lines.setdefault((key.tag, key.value), line)
        yield from _repeated_keys(key, seen)
        yield from _repeated_keys(value, seen)


def parse_value(text: str) -> Any:
    """Parse the value of a ``--set`` as YAML; raise yaml.YAMLError if it is not valid."""
    return yaml.load(text, _Loader)


def read_nodes(text: str) -> yaml.MappingNode:
    """Return the node tree of the text of a valid config, without merged keys (<<) inserted."""
    node = yaml.compose(text, _Loader)
    assert isinstance(node, yaml.MappingNode)
    return node


def construct(node: yaml.Node) -> Any:
    """Return the value of a node from ``read_nodes``."""
    return _Loader("").construct_document(node)


def dump_flow(data: Any) -> str:
    """Return ``data`` as YAML on one line."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=True)
    return text.removesuffix("...\n").strip()  # the end of a document that is a plain value


def dump_yaml(data: Any) -> str:
    """Return ``data`` as YAML text with the keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _repeated_keys_error(repeated_keys: list[tuple[int, int, str]], name: str) -> InputError:
    keys = "; ".join(f"`{key}` on lines {first} and {line}" for line, first, key in repeated_keys)
    what = f"a mapping contains the same key twice: {keys}"
    return InputError(what, where=f"{name}:{repeated_keys[0][0]}", fix="keep one of them")


def _syntax_error(error: yaml.YAMLError, name: str) -> InputError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    tabs = "\\t" in problem
    fix = "indent with spaces, not tabs" if tabs else "check indentation, colons and quotes on this line"
    where = f"{name}:{mark.line + 1}" if mark else name
    return InputError(f"not valid YAML: {problem}", where=where, fix=fix)
