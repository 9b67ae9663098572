"""From what the user names (a packaged recipe or a file) and sets (``--set``) to a valid config."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.config.error_messages import closest_match, dotted_key, to_input_error
from orchestrator.config.schema import Config
from orchestrator.config.yaml_document import dump_yaml, parse_value, read_yaml
from ttmoe.errors import InputError

STARTER = "starter"  # what `ttmoe init` writes; it names data that is not there, so it is no recipe to run


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config, the ``source_name`` it was asked for by, its file's ``text`` and the ``overrides``."""

    config: Config
    source_name: str
    text: str
    overrides: tuple[str, ...] = ()


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The config of a packaged recipe or of a file, with ``a.b.c=value`` overrides laid over it.

    Relative paths in it are taken from the file's folder, in a recipe from the working directory, where
    ``storage.root`` always is. Raises InputError that lists all problems.
    """
    text, name, folder = _find(name_or_path)
    document = read_yaml(text, name)
    data, touched = apply_overrides(document.data, overrides)
    try:
        config = Config.model_validate(_anchored(data, folder))
    except ValidationError as error:
        raise to_input_error(error, document, data, touched) from None
    return LoadedConfig(config, name_or_path, text, tuple(overrides))


def resolved_yaml(config: Config) -> str:
    """The whole config with its defaults, as YAML that loads to the same config."""
    return dump_yaml(config.model_dump(mode="json", exclude_none=True, by_alias=True))


def recipe_names() -> list[str]:
    """The packaged recipes that can be run by name."""
    names = (Path(entry.name) for entry in files("orchestrator").joinpath("recipes").iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml" and name.stem != STARTER)


def recipe_text(name: str) -> str:
    """The text of the packaged recipe ``name``, its comments included."""
    return files("orchestrator").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")


def _find(name_or_path: str) -> tuple[str, str, Path]:
    """Text, name in messages, and the folder that relative paths start from."""
    path = Path(name_or_path).expanduser()
    if name_or_path in recipe_names():
        return recipe_text(name_or_path), name_or_path, Path.cwd()
    if not path.is_file():
        raise _not_found(name_or_path, path)
    try:
        return path.read_text(encoding="utf-8"), name_or_path, path.resolve().parent
    except (OSError, UnicodeDecodeError) as error:
        fix = "save the file as UTF-8 text that you may read"
        raise InputError(f"cannot be read: {error}", where=name_or_path, fix=fix) from None


def _not_found(given: str, path: Path) -> InputError:
    recipes = f"packaged recipes: {', '.join(recipe_names())}"
    if not path.suffix and len(path.parts) == 1:
        there = [name for name in (f"{given}.yaml", f"{given}.yml") if Path(name).is_file()]
        near = there[0] if there else closest_match(given, recipe_names())
        hint = f"did you mean `{near}`?" if near else "a config of your own is named by its file: my.yaml;"
        return InputError(f"there is no packaged recipe {given!r}", fix=f"{hint} {recipes}")
    what = "this is a folder" if path.is_dir() else "there is no such file"
    folder = path if path.is_dir() else path.parent
    beside = sorted(each.name for each in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = closest_match(path.name, beside)
    listed = f"did you mean `{folder / near}`? " if near else ""
    listed += f"configs in {folder}: {', '.join(beside)}; " if beside else f"no config is in {folder}; "
    return InputError(what, where=given, fix=f"{listed}{recipes}")


OverrideTexts = dict[tuple[str | int, ...], str]
"""The text of each override, by the path of its key."""


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], OverrideTexts]:
    """A copy of ``data`` with every ``a.b.c=value`` laid over it, and the text of each override by its path.

    Values are YAML. Whether the keys exist is for the validation to say. Raises InputError for what is no
    override.
    """
    data, touched = copy.deepcopy(data), OverrideTexts()
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            fix = "for example --set train.steps=100"
            raise InputError("an override is key=value", where=f"--set {text}", fix=fix)
        try:
            parsed = parse_value(value)
        except yaml.YAMLError:
            what = f"the value is not YAML: {value}"
            raise InputError(what, where=f"--set {text}", fix="put it in quotes") from None
        _lay(data, path, parsed, text)
        touched[path] = text
    return data, touched


def _lay(data: dict[str, Any], path: tuple[str, ...], value: Any, text: str) -> None:
    """Set one value, making the sections on its way that are not there."""
    tasks = data.get("tasks")
    if len(path) > 2 and path[0] == "tasks" and isinstance(tasks, dict) and path[1] not in tasks:
        # Made anew, a misspelt task would be told that it lacks everything a task needs.
        near = closest_match(path[1], tasks)
        hint = f"did you mean `{near}`?" if near else f"tasks: {', '.join(tasks)}"
        raise InputError(f"there is no task `{path[1]}`", where=f"--set {text}, {dotted_key(path[:2])}", fix=hint)
    for depth, key in enumerate(path[:-1], 1):
        inner = data.get(key) or {}
        if not isinstance(inner, dict):
            whole = dotted_key(path[:depth])
            fix = f"set it as a whole: --set {whole}=VALUE"
            raise InputError(f"`{whole}` holds a value, not keys", where=f"--set {text}", fix=fix)
        inner = dict(inner)  # a YAML alias may have the same mapping stand elsewhere too
        data[key] = inner
        data = inner
    data[path[-1]] = value


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy in which local paths are absolute: workers run in other working directories."""
    data = copy.deepcopy(data)
    _anchor(data.get("base"), "folder", folder)
    tasks = data.get("tasks")
    for task in tasks.values() if isinstance(tasks, dict) else ():
        source = task.get("source") if isinstance(task, dict) else None
        for part in (source, *source.values()) if isinstance(source, dict) else ():
            _anchor(part, "path", folder)
    return data


def _anchor(section: Any, key: str, folder: Path) -> None:
    if isinstance(section, dict) and isinstance(section.get(key), str):
        section[key] = str(folder / Path(section[key]).expanduser())
