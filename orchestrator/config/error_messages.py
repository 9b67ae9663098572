"""Says what is wrong with a config: every problem at once, each with its place, key, value and what to do."""

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
    """One thing that is wrong at the key ``path``; ``key`` is the right key there, where it is known."""

    path: KeyPath
    what: str
    fix: str = ""
    key: str = ""


def to_input_error(
    error: ValidationError, document: YamlDocument, data: Any, overrides: Mapping[KeyPath, str]
) -> InputError:
    """One InputError that lists all problems of ``error``, in the file's order.

    ``data`` is what was validated: the document's data after ``overrides``, which map a path to the text of
    its ``--set``, so that a problem is shown where the user can correct it.
    """
    found = sorted(find_problems(error, Config, data), key=lambda problem: document.line(problem.path))
    problems = [_with_place(problem, document, overrides) for problem in found]
    if len(problems) == 1:
        where, what, fix = problems[0]
        return InputError(what, where=where, fix=fix)
    lines = [f"\n  {where}: {what}" + (f"; {fix}" if fix else "") for where, what, fix in problems]
    return InputError(
        f"{len(problems)} problems{''.join(lines)}",
        where=document.name,
        fix="nothing was started; correct these and type the command again",
    )


def _with_place(problem: Problem, document: YamlDocument, overrides: Mapping[KeyPath, str]) -> tuple[str, str, str]:
    path = problem.path
    place = f"{document.name}:{document.line(path)}"
    for touched, text in overrides.items():
        # An override speaks for what lies under its key, and for the keys on its way that only it wrote.
        on_its_way = touched[: len(path)] == path and not document.has(path)
        if path and (path[: len(touched)] == touched or on_its_way):
            place = f"--set {text}"
    return ", ".join(filter(None, (place, dotted_key(path)))), problem.what, problem.fix


def dotted_key(path: Sequence[str | int]) -> str:
    """A path as it is written in ``--set`` and in messages."""
    return ".".join(map(str, path))


def find_problems(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """The problems of ``error``, one for each path; what a misspelt key explains is not said again."""
    grouped: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        grouped.setdefault(_clean(item, data), []).append(item)
    missing = {path for path, items in grouped.items() if items[0]["type"] == "missing"}
    # A union reports each of its members: the one that came furthest is the one that was meant.
    deeper = {other[:end] for other in grouped for end in range(len(other))}
    problems = [
        _problem(path, items, model, missing)
        for path, items in grouped.items()
        if path not in deeper or items[0]["type"] == "fault"
    ]
    meant = {(*problem.path[:-1], problem.key) for problem in problems if problem.key}
    return [problem for problem in problems if not (problem.path in missing and problem.path in meant)]


def _clean(item: Any, data: Any) -> KeyPath:
    """The path that the user wrote: pydantic's location without the names of union members and validators."""
    path: list[str | int] = []
    location, key = item["loc"], item.get("ctx", {}).get("key", ())
    for place, step in enumerate((*location, *key), 1):
        known = {str(name): name for name in data} if isinstance(data, Mapping) else {}
        if str(step) in known:
            data = data[known[str(step)]]
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
            said = [field.description for name, field in _fields(model, path[:-1], ()) if name == path[-1]]
            return Problem(path, "required, but not there", f"add it: {said[0]}" if said else "add it")
        case "extra_forbidden":
            needed = {str(other[-1]) for other in missing if other[:-1] == path[:-1]}
            keys = list(dict.fromkeys(name for name, _ in _fields(model, path[:-1], needed)))
            near = closest_match(str(path[-1]), keys)
            hint = f"did you mean `{near}`?" if near else f"the keys here: {', '.join(keys)}"
            return Problem(path, f"unknown key (its value: {_shown(items[0]['input'])})", hint, near)
        case _:
            return _bad_value(path, items)


def _bad_value(path: KeyPath, items: list[Any]) -> Problem:
    """A value that breaks pydantic's own rules; a union gives one rule for each member."""
    value = items[0]["input"]
    rules = list(dict.fromkeys(_rule(item["msg"]) for item in items))
    what = " or ".join([rules[0][0].lower() + rules[0][1:], *(r.removeprefix("must be ") for r in rules[1:])])
    words = " ".join(str(item.get("ctx", {}).get("expected", "")) for item in items)
    near = closest_match(value, re.findall(r"'([^']+)'", words)) if isinstance(value, str) else ""
    return Problem(path, f"{what}, not {_shown(value)}", f"did you mean `{near}`?" if near else "")


def _rule(message: str) -> str:
    """Pydantic's message in the words of YAML."""
    words = {"tuple": "a list", "dictionary": "a mapping", "integer": "an integer", "number": "a number"}
    message = message.partition(", unable to parse")[0].replace("Input should be", "must be")
    for word, in_yaml in words.items():
        message = message.replace(f"a valid {word}", in_yaml)
    return message.replace("a valid ", "a ")


def closest_match(word: str, known: Iterable[str]) -> str:
    """The known word that ``word`` most likely stands for, or nothing."""
    return next(iter(get_close_matches(word, [each for each in known if each], 1, 0.6)), "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(model: type[BaseModel], path: KeyPath, needed: Iterable[str]) -> list[tuple[str, Any]]:
    """(key, field) of what may stand at ``path``; of a union, the members that have all ``needed`` keys."""
    places: list[Any] = [model]
    for step in path:
        places = [inner for place in places for inner in _step(place, step)]
    found = [place for place in places if isinstance(place, type) and issubclass(place, BaseModel)]
    models = [{field.alias or name: field for name, field in place.model_fields.items()} for place in found]
    return [pair for fields in models if set(needed) <= fields.keys() for pair in fields.items()]


def _step(place: Any, step: str | int) -> list[Any]:
    if isinstance(place, type) and issubclass(place, BaseModel):
        found = [field for name, field in place.model_fields.items() if step in (name, field.alias)]
        return _members(found[0].annotation) if found else []
    inner = [each for each in get_args(place) if each is not Ellipsis]
    return _members(inner[-1]) if inner and get_origin(place) in (dict, list, tuple) else []


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [each for member in get_args(annotation) for each in _members(member)]
    return [annotation]
