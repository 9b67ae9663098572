"""Load a config from a packaged recipe or a YAML file, apply ``--set`` overrides and validate it."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.config.completion import mask_on_end
from orchestrator.config.error_messages import closest_match, dotted_key, to_input_error
from orchestrator.config.number_check import require_numbers
from orchestrator.config.schema import Config
from orchestrator.config.store_address import mask_uri
from orchestrator.config.yaml_document import dump_yaml, parse_value, read_yaml, to_document
from ttmoe.errors import InputError

STARTER = "starter"  # the file that `ttmoe init` writes; its data does not exist, so it is not a recipe to run
_FROM_PYTHON = "config"  # name of a config that has no file


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config and its origin.

    Attributes:
        config: The validated config.
        source_name: Recipe name or path as the user wrote it.
        text: Text of the file, without the overrides; empty for a config from Python.
        overrides: ``key=value`` texts of the overrides.
    """

    config: Config
    source_name: str
    text: str
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> str:
        """What follows the name of a command in a shell: the config and its overrides."""
        return shlex.join([self.source_name, *(part for each in self.overrides for part in ("--set", each))])

    @property
    def is_recipe(self) -> bool:
        """Whether it is a packaged recipe."""
        return self.source_name in recipe_names()


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load and validate a config.

    Relative paths of data and of the base start at the file's folder, those of a recipe or a mapping at the working
    directory. ``storage`` paths always start at the working directory.

    Args:
        source: Name of a packaged recipe, path of a YAML file, or the content of a config.
        overrides: Overrides such as ``train.steps=100``.

    Raises:
        InputError: If the file cannot be read or the config is not valid; it lists all problems.
    """
    if isinstance(source, Mapping):
        name, text, folder = _FROM_PYTHON, "", Path.cwd()
        document = to_document(source, name)
    else:
        name = str(source)
        text, folder = _read_source(name)
        document = read_yaml(text, name)
    data, override_texts = apply_overrides(document.data, overrides)
    for place in _nul_places(data, ()):  # in a path or a name, the operating system would refuse it
        where = ", ".join(filter(None, (document.place(place), dotted_key(place))))
        raise InputError("the text holds a NUL character", where=where, fix=r"remove the \0")
    try:
        absolute = _with_absolute_paths(data, folder)
        config = Config.model_validate(absolute)
        require_numbers(absolute, config)
    except ValidationError as error:
        raise to_input_error(error, document, data, override_texts) from None
    return LoadedConfig(config, name, text, tuple(overrides))


def _nul_places(data: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield the places of texts that hold a NUL character."""
    if isinstance(data, str) and "\0" in data:
        yield place
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _nul_places(value, (*place, key))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from _nul_places(value, (*place, index))


def resolved_yaml(config: Config) -> str:
    """Return the whole config, defaults included, as YAML that loads to the same config, but without a password."""
    return dump_yaml(_masked(config.model_dump(mode="json", exclude_none=True, by_alias=True)))


def mask_config(text: str) -> str:
    """Return the YAML text of a valid config without its passwords."""
    return dump_yaml(_masked(read_yaml(text, "config").data))


def _masked(data: dict[str, Any]) -> dict[str, Any]:
    tracking, on_end = data.get("tracking", {}), data.get("on_end")
    masked = data | ({"on_end": mask_on_end(on_end)} if on_end else {})
    return masked | ({"tracking": tracking | {"uri": mask_uri(uri)}} if (uri := tracking.get("uri")) else {})


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes that can be run."""
    names = (Path(entry.name) for entry in files("orchestrator").joinpath("recipes").iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml" and name.stem != STARTER)


def recipe_text(name: str) -> str:
    """Return the text of a packaged recipe with its comments."""
    return files("orchestrator").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")


def _read_source(name_or_path: str) -> tuple[str, Path]:
    """Return the text and the folder at which relative paths start."""
    path = Path(name_or_path).expanduser()
    if name_or_path in recipe_names():
        return recipe_text(name_or_path), Path.cwd()
    if not path.is_file():
        raise _not_found_error(name_or_path, path)
    try:
        return path.read_text(encoding="utf-8"), path.resolve().parent
    except (OSError, UnicodeDecodeError) as error:
        fix = "save it as UTF-8 text, and check its permissions"
        raise InputError(f"cannot read the file: {error}", where=name_or_path, fix=fix) from None


def _not_found_error(given: str, path: Path) -> InputError:
    recipes = f"packaged recipes: {', '.join(recipe_names())}"
    if not path.suffix and len(path.parts) == 1:
        existing = [name for name in (f"{given}.yaml", f"{given}.yml") if Path(name).is_file()]
        near = existing[0] if existing else closest_match(given, recipe_names())
        hint = f"did you mean `{near}`?" if near else "give the path of a config file, such as my.yaml;"
        return InputError(f"no packaged recipe is named {given!r}", fix=f"{hint} {recipes}")
    what = "this is a folder, not a config file" if path.is_dir() else "the file does not exist"
    folder = path if path.is_dir() else path.parent
    configs = sorted(file.name for file in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = closest_match(path.name, configs)
    hint = f"did you mean `{folder / near}`? " if near else ""
    hint += f"configs in {folder}: {', '.join(configs)}; " if configs else f"{folder} contains no config; "
    return InputError(what, where=given, fix=f"{hint}{recipes}")


OverrideTexts = dict[tuple[str | int, ...], str]
"""Text of each override by the path of its key."""


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], OverrideTexts]:
    """Apply overrides to the data of a config.

    Whether the keys exist is checked later, with the whole config.

    Args:
        data: Data of the config; it is not changed.
        overrides: Texts such as ``a.b.c=value`` with a YAML value. Of two for the same key the last one counts.

    Returns:
        The changed copy of the data, and the text of each override by the path of its key.

    Raises:
        InputError: If an override is not of this form, names a task that does not exist, or sets a key of a value
            that is not a section.
    """
    data, override_texts = copy.deepcopy(data), OverrideTexts()
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            fix = "write it as in --set train.steps=100"
            raise InputError("an override must have the form key=value", where=f"--set {text}", fix=fix)
        try:
            parsed = parse_value(value)
        except yaml.YAMLError:
            what = f"the value is not valid YAML: {value}"
            raise InputError(what, where=f"--set {text}", fix="put it in quotes") from None
        _set_value(data, path, parsed, text)
        override_texts[path] = text
    return data, override_texts


def _set_value(data: dict[str, Any], path: tuple[str, ...], value: Any, text: str) -> None:
    """Set one value in place, and create missing sections on its path."""
    tasks = data.get("tasks")
    if len(path) > 2 and path[0] == "tasks" and isinstance(tasks, dict) and path[1] not in tasks:
        # If the task were created, the error would list every key that a task requires instead of the misspelling.
        near = closest_match(path[1], tasks)
        hint = f"did you mean `{near}`?" if near else f"tasks: {', '.join(tasks)}"
        raise InputError(f"no task is named `{path[1]}`", where=f"--set {text}, {dotted_key(path[:2])}", fix=hint)
    for depth, key in enumerate(path[:-1], 1):
        inner = data.get(key) or {}
        if not isinstance(inner, dict):
            section = dotted_key(path[:depth])
            fix = f"set the value itself: --set {section}=VALUE"
            raise InputError(f"`{section}` is a value and has no keys", where=f"--set {text}", fix=fix)
        inner = dict(inner)  # a YAML alias may use the same mapping in other places
        data[key] = inner
        data = inner
    data[path[-1]] = value


def _with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a copy with absolute local paths, because workers run in other working directories."""
    data = copy.deepcopy(data)
    for key in ("folder", "config"):
        _make_absolute(data.get("base"), key, folder)
    tasks = data.get("tasks")
    for task in tasks.values() if isinstance(tasks, dict) else ():
        for key in ("source", "routing_rows"):
            source = task.get(key) if isinstance(task, dict) else None
            for part in (source, *source.values()) if isinstance(source, dict) else ():
                _make_absolute(part, "path", folder)
    return data


def _make_absolute(section: Any, key: str, folder: Path) -> None:
    if isinstance(section, dict) and isinstance(section.get(key), str):
        section[key] = str(folder / Path(section[key]).expanduser())
