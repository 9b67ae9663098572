"""Convert pydantic's validation errors to one message that lists every problem with its line, key, value and fix."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from orchestrator.config.schema import Config
from orchestrator.config.yaml_document import YamlDocument
from ttmoe.errors import InputError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One problem of a config.

    Attributes:
        path: Path of the key.
        what: What is wrong.
        fix: What to do; empty if the message is enough.
        key: Correct spelling of the last key of ``path``, if it is misspelt; else empty.
    """

    path: KeyPath
    what: str
    fix: str = ""
    key: str = ""


def to_input_error(
    error: ValidationError,
    document: YamlDocument,
    data: Any,
    overrides: Mapping[KeyPath, str],
    model: type[BaseModel] = Config,
) -> InputError:
    """Convert a validation error to an InputError that lists all problems in the order of the file.

    Args:
        error: Error of pydantic.
        document: The config file.
        data: Validated data: that of the document after the overrides.
        overrides: Text of each ``--set`` by the path of its key. A problem that an override caused names the override
            instead of a line.
        model: The model that refused the data.
    """
    ordered = sorted(find_problems(error, model, data), key=lambda problem: document.line(problem.path))
    problems = [_locate(problem, document, overrides) for problem in ordered]
    if len(problems) == 1:
        where, what, fix = problems[0]
        return InputError(what, where=where, fix=fix)
    lines = [f"\n  {where}: {what}" + (f"; {fix}" if fix else "") for where, what, fix in problems]
    return InputError(
        f"{len(problems)} problems{''.join(lines)}",
        where=document.name,
        fix="correct them and run the command again; no work was started",
    )


def _locate(problem: Problem, document: YamlDocument, overrides: Mapping[KeyPath, str]) -> tuple[str, str, str]:
    """Return where the problem is, what is wrong and what to do, as text."""
    path = problem.path
    place = document.place(path)
    for override_path, text in overrides.items():
        # An override caused problems below its key, and problems of the sections on its path that only it created.
        created = override_path[: len(path)] == path and not document.has(path)
        if path and (path[: len(override_path)] == override_path or created):
            place = f"--set {text}"
    return ", ".join(filter(None, (place, dotted_key(path)))), problem.what, problem.fix


def dotted_key(path: Sequence[str | int]) -> str:
    """Return a path as text with dots, as in ``--set``."""
    return ".".join(map(str, path))


def find_problems(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """Return the problems of a validation error, one for each path.

    A missing key is not reported if it is the correct spelling of a misspelt key.

    Args:
        error: Error of pydantic.
        model: Model that was validated against.
        data: Validated data.
    """
    grouped: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        grouped.setdefault(_data_path(item, data), []).append(item)
    missing = {path for path, items in grouped.items() if items[0]["type"] == "missing"}
    # A union reports an error for each member. The member with the deepest error is the one the user meant.
    parents = {path[:end] for path in grouped for end in range(len(path))}
    problems = [
        _problem(path, items, model, missing)
        for path, items in grouped.items()
        if path not in parents or items[0]["type"] == "fault"
    ]
    misspelt = {(*problem.path[:-1], problem.key) for problem in problems if problem.key}
    return [problem for problem in problems if not (problem.path in missing and problem.path in misspelt)]


def _data_path(item: Any, data: Any) -> KeyPath:
    """Return the error's path in the data: pydantic's location without names of union members and validators."""
    path: list[str | int] = []
    location, key = item["loc"], item.get("ctx", {}).get("key", ())
    for place, step in enumerate((*location, *key), 1):
        keys = {str(name): name for name in data} if isinstance(data, Mapping) else {}
        if str(step) in keys:
            data = data[keys[str(step)]]
        elif isinstance(data, list | tuple) and str(step).isdigit() and int(step) < len(data):
            step, data = int(step), data[int(step)]
        elif place < len(location) or (place == len(location) and item["type"] != "missing"):
            continue
        path.append(step)
    return tuple(path)


def _problem(path: KeyPath, items: list[Any], model: type[BaseModel], missing: Iterable[KeyPath]) -> Problem:
    context = items[0].get("ctx", {})
    match items[0]["type"]:
        case "fault":
            return Problem(path, context["what"], context["fix"])
        case "missing":
            descriptions = [field.description for name, field in _fields(model, path[:-1], ()) if name == path[-1]]
            return Problem(path, "this key is required", f"add it: {descriptions[0]}" if descriptions else "add it")
        case "extra_forbidden":
            siblings = {str(other[-1]) for other in missing if other[:-1] == path[:-1]}
            keys = list(dict.fromkeys(name for name, _ in _fields(model, path[:-1], siblings)))
            near = closest_match(str(path[-1]), keys)
            hint = f"did you mean `{near}`?" if near else f"valid keys: {', '.join(keys)}"
            if near == path[-1]:  # a key of another form of this section
                near, hint = "", "remove it"
            return Problem(path, f"unknown key (its value: {_short_repr(items[0]['input'])})", hint, near)
        case _:
            return _bad_value(path, items)


def _bad_value(path: KeyPath, items: list[Any]) -> Problem:
    """Describe a value that fails pydantic's own rules; a union has one rule for each member."""
    value = items[0]["input"]
    rules = list(dict.fromkeys(_rule(item["msg"]) for item in items))
    what = " or ".join([rules[0][0].lower() + rules[0][1:], *(rule.removeprefix("must be ") for rule in rules[1:])])
    expected = " ".join(str(item.get("ctx", {}).get("expected", "")) for item in items)
    near = closest_match(value, re.findall(r"'([^']+)'", expected)) if isinstance(value, str) else ""
    return Problem(path, f"{what}, not {_short_repr(value)}", f"did you mean `{near}`?" if near else "")


def _rule(message: str) -> str:
    """Replace Python's names of types in pydantic's message by those of YAML."""
    names = {"tuple": "a list", "dictionary": "a mapping", "integer": "an integer", "number": "a number"}
    message = message.partition(", unable to parse")[0].replace("Input should be", "must be")
    for name, yaml_name in names.items():
        message = message.replace(f"a valid {name}", yaml_name)
    return message.replace("a valid ", "a ")


def closest_match(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most similar to ``word``, or an empty string if none is similar."""
    return next(iter(get_close_matches(word, filter(None, known), 1, 0.6)), "")


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(model: type[BaseModel], path: KeyPath, required: Iterable[str]) -> list[tuple[str, Any]]:
    """Return the (key, field) pairs that are valid at ``path``; of a union, of members with all ``required`` keys."""
    types: list[Any] = [model]
    for step in path:
        types = [inner for outer in types for inner in _types_at(outer, step)]
    models = [inner for inner in types if _is_model(inner)]
    keyed = [{field.alias or name: field for name, field in inner.model_fields.items()} for inner in models]
    return [pair for fields in keyed if set(required) <= fields.keys() for pair in fields.items()]


def _types_at(outer: Any, step: str | int) -> list[Any]:
    """Return the types that a key of a model, or an item of a container, may have."""
    if _is_model(outer):
        fields = [field for name, field in outer.model_fields.items() if step in (name, field.alias)]
        return _members(fields[0].annotation) if fields else []
    arguments = [argument for argument in get_args(outer) if argument is not Ellipsis]
    return _members(arguments[-1]) if arguments and get_origin(outer) in (dict, list, tuple) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]
