"""``ttmoe init``: write a starter config, or a config for data files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttmoe.errors import InputError

if TYPE_CHECKING:
    from orchestrator.first_config.new_config import NewConfig

_CONFIG_ENDINGS = (".yaml", ".yml")
_DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".txt", ".log", ".gz")
_DEFAULT = Path("ttmoe.yaml")
_LIBRARY = "my-library"
_SCHEMA = "ttmoe.schema.json"


def init(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]... [CONFIG]",
            help="Data files; and the config to write, or its folder/; by default ttmoe.yaml.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="CONFIG", help="Config to write; by default ttmoe.yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a config for data files, or a commented starter config, and its JSON Schema.

    With data files (JSONL, CSV, TSV, Parquet, text), each is a task: kind, columns, label and the length of inputs are
    guessed, and comments say what was seen and what is unclear. Files named train and test in one folder are the splits
    of one task.
    """
    data, target = _sort_paths([_named(path) for path in paths or []], _named(out) if out is not None else None)
    if target.is_dir():
        target = target / _DEFAULT
    if target.exists() and not force:
        fix = "choose another path, or replace it with --force"
        raise InputError("the file already exists", where=str(target), fix=fix)
    if not data:
        from orchestrator.config.loading import STARTER, recipe_text

        _write(target, recipe_text(STARTER))
        typer.echo(f"next: point tasks.my_task to your data, then run: ttmoe run {target}")
        return
    from orchestrator.first_config.new_config import draft_config

    made = draft_config(data, target.parent, _library(target))
    _show(made)
    _write(target, made.text)
    typer.echo(f"next: see the rows as they will be read: ttmoe data {target}, then: ttmoe run {target}")


def _named(text: str) -> Path:
    """Return the path of an argument; of a folder with a slash at its end, that is new or has a config, the config."""
    path = Path(text)
    is_place = text.endswith(("/", os.sep)) and (not path.exists() or (path / _DEFAULT).exists())
    return path / _DEFAULT if is_place else path


def _sort_paths(paths: list[Path], out: Path | None) -> tuple[list[Path], Path]:
    """Return the data files and the config to write: what ends in .yaml, a folder at the end, or a lone other path."""
    configs = [path for path in paths if path.suffix.lower() in _CONFIG_ENDINGS]
    if not configs and paths and (paths[-1].is_dir() or (len(paths) == 1 and not _is_data(paths[0]))):
        configs = paths[-1:]
    data = [path for path in paths if path not in configs and path.name != _SCHEMA]  # *.json finds it too
    if out is not None:
        configs = [*configs, out]
    if len(configs) > 1:
        what = f"there are {len(configs)} configs to write: {', '.join(map(str, configs))}"
        raise InputError(what, fix="name one config, and data files")
    return data, configs[0] if configs else _DEFAULT


def _is_data(path: Path) -> bool:
    return path.is_file() or path.suffix.lower() in _DATA_ENDINGS


def _library(target: Path) -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", target.stem.lower()).strip("-")[:60]
    return name if name and target.name != _DEFAULT.name else _LIBRARY


def _show(made: NewConfig) -> None:
    from orchestrator.first_config.draft_sentences import seen_sentences

    for draft, lengths in zip(made.drafts, made.lengths, strict=True):
        files = ", ".join(file.path.name for file in draft.files.values())
        columns = ", ".join(f"{key} {value}" for key, value in draft.guess.columns.items())
        label = f", label {draft.guess.label}" if draft.guess.label else ""
        typer.echo(f"{files}: task {draft.name}, kind {draft.guess.kind}, {columns}{label}")
        for sentence in seen_sentences(draft, lengths):
            typer.echo(f"  {sentence}")
        for text in draft.guess.unclear:
            typer.echo(f"  unclear: {text}")
        for text in draft.warnings:
            typer.echo(f"  warning: {text}")
    typer.echo(f"base: {made.base.reason}; max_length {made.base.max_length}")


def _write(target: Path, text: str) -> None:
    from orchestrator.config.json_schema import SCHEMA_FILE, schema_text

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.with_name(SCHEMA_FILE).write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        what = f"the file cannot be written ({error.strerror})"
        raise InputError(what, where=str(target), fix="choose another path") from error
    typer.echo(f"wrote {target}, and {SCHEMA_FILE} for editors")
