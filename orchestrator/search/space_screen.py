"""``ttmoe tune --dry-run``: print the space of a search, a sample of its points, and what the search would train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.plan.json_output import to_json
from orchestrator.plan.quantities import format_bytes, format_duration, format_names
from orchestrator.search.search_forecast import COUNTED, SampledPoint, SearchForecast, SpaceForecast

_SHOWN_OPTIONS = 8


def show_space(forecast: SearchForecast, console: Console, *, as_json: bool = False) -> None:
    """Print what a search would do.

    Args:
        forecast: The forecast.
        console: Where it is printed.
        as_json: Print one JSON object instead of tables.
    """
    if as_json:
        console.out(to_json(search_forecast_as_dict(forecast), exact=("settings",)), highlight=False)
        return
    for space in forecast.spaces:
        console.print(_choices_table(space))
        console.print(_sample_table(space))
    for label, text in _lines(forecast):
        console.print(f"{label:<11}{text}", soft_wrap=True, highlight=False, markup=False)


def search_forecast_as_dict(forecast: SearchForecast) -> dict[str, Any]:
    """Return the content of ``ttmoe tune --dry-run --json``, not rounded; its keys do not change.

    Memory is in bytes, times are in seconds or None if unknown.
    """
    search, resources = forecast.search, forecast.resources
    return {
        "method": forecast.method,
        "settings": search.model_dump(mode="json"),
        "spaces": [
            {
                "tasks": list(space.tasks),
                "size": space.size,
                "counted_to_end": space.size < COUNTED,
                "choices": {name: list(options) for name, options in space.choices.items()},
                "sample": [vars(point) for point in space.sample],
                "cached": space.cached,
            }
            for space in forecast.spaces
        ],
        "rungs": list(search.rung_steps),
        "steps": forecast.steps,
        "resources": {"cpus": resources.cpus, "gpus": resources.gpus, "memory": resources.memory},
        "at_once": forecast.parallel,
        "seconds": forecast.seconds,
    }


def _choices_table(space: SpaceForecast) -> Table:
    each = " each" if len(space.tasks) > 1 else ""
    title = f"{format_names(space.tasks)}: {_size(space)}{each}"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("choice", overflow="fold")
    table.add_column("options", overflow="fold")
    alike: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
    for name, options in space.choices.items():
        kind, of = _split_name(name)
        alike.setdefault((kind, options), []).append(of)
    for (kind, options), names in alike.items():
        label = f"{kind} ({', '.join(names)})" if any(names) else kind
        table.add_row(escape(label), escape(_options(options)))
    return table


def _sample_table(space: SpaceForecast) -> Table:
    sample = space.sample
    title = "all points" if len(sample) == space.size else f"{len(sample)} points at random"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    # Targets have no column: the shapes name the roles.
    others = [name for name in ("layers", "alpha", "head") if name in space.choices]
    cached = ["trial"] if any(space.cached.values()) else []
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("shape", overflow="fold")
    for heading in (*others, "parameters", "of LoRA-16", "lr", *cached):
        table.add_column(heading, justify="left" if heading in ("head", "trial") else "right", no_wrap=True)
    for point in sample:
        shape = _shape(point, names_roles="targets" in space.choices)
        numbers = [f"{point.parameters:,}", f"{point.lora_share:.1%}", f"{point.lr:.3g}"]
        state = ["cached" if point.is_cached else ""] if cached else []
        table.add_row(*map(escape, [*shape, *(_text(point.point[name]) for name in others), *numbers, *state]))
    return table


def _lines(forecast: SearchForecast) -> Iterator[tuple[str, str]]:
    """Yield lines about the whole search; each is a label and a text."""
    search = forecast.search
    yield "method", _method(forecast)
    if forecast.method != "truncate":
        for space in forecast.spaces:
            yield from _trials(forecast, space)
    if search.max_parameters:
        yield "bound", f"at most {search.max_parameters:,} parameters (search.max_parameters)"
    if len(rungs := search.rung_steps) > 1 and search.rungs and forecast.method != "truncate":
        yield "rungs", f"{', '.join(map(str, rungs))} steps; one of {search.rungs.factor} trials is trained further"
    if search.budget:
        yield "budget", ", ".join(f"{value:g} {name}" for name, value in search.budget if value is not None)
    if search.confirm:
        yield "confirm", f"up to {search.finalists} trials of each task with {search.confirm} more seeds each"
    resources = forecast.resources
    gpus = f", {resources.gpus:g} GPUs" if resources.gpus else ""
    memory = format_bytes(resources.memory)
    yield "each trial", f"{resources.cpus:g} CPUs{gpus}, {memory} of memory; {forecast.parallel} in parallel"
    if not forecast.steps:
        yield "training", "none: all of it has been done"
        return
    about = "at most" if forecast.method == "truncate" else "about"
    yield "training", f"{about} {forecast.steps:,} optimizer steps"
    seconds = forecast.seconds
    unknown = "unknown: no finished training on this base"
    yield "time", unknown if seconds is None else f"about {format_duration(seconds)}"


def _method(forecast: SearchForecast) -> str:
    if forecast.method != "truncate":
        return forecast.method
    ranks = sorted(forecast.spaces[0].choices["rank"], reverse=True)
    cuts = f" and cuts it to {', '.join(map(str, ranks[1:]))}" if len(ranks) > 1 else ""
    return f"truncate: trains one expert of rank {ranks[0]} for each task{cuts}"


def _trials(forecast: SearchForecast, space: SpaceForecast) -> Iterator[tuple[str, str]]:
    trials, tasks = forecast.search.trials, format_names(space.tasks)
    each = " for each task" if len(space.tasks) > 1 else ""
    if space.size < trials:
        points = f"{space.size:,} point" + ("s" if space.size != 1 else "")
        yield "trials", f"the space of {tasks} has {points}, fewer than the {trials:,} trials: each is tried once{each}"
    elif forecast.method == "grid" and space.size > trials:
        yield "trials", f"the first {trials:,} points{each}; set search.trials to {_number(space)} for all"
    else:
        yield "trials", f"{trials:,}{each} ({tasks})"
    if cached := sum(space.cached.values()):
        yield "", f"{cached:,} of these already ended and will not be trained again"


def _size(space: SpaceForecast) -> str:
    return f"{_number(space)} point" + ("s" if space.size != 1 else "")


def _number(space: SpaceForecast) -> str:
    return f"over {COUNTED:,}" if space.size >= COUNTED else f"{space.size:,}"


def _split_name(name: str) -> tuple[str, str]:
    """Return what is chosen, and for which roles or width; for ``inputs.384.2``, ``2 input factors`` and ``384``."""
    kind, _, of = name.partition(".")
    if kind in ("inputs", "outputs"):
        of, _, count = of.rpartition(".")
        kind = f"{count} {kind.removesuffix('s')} factors"
    return kind, of


def _shape(sampled: SampledPoint, names_roles: bool) -> tuple[str, str]:
    """Return the rank and the shapes of all roles: equal ones once, and with their own ranks if those differ."""
    ranks = {shape.partition("@")[2] for shape in sampled.shapes.values()}
    roles: dict[str, list[str]] = {}
    for role, shape in sampled.shapes.items():
        roles.setdefault(shape.partition("@")[0] if len(ranks) == 1 else shape, []).append(role)
    names_roles = names_roles or len(roles) > 1
    texts = [f"{','.join(names)} {text}" if names_roles else text for text, names in roles.items()]
    return max(ranks, key=int), "\n".join(texts)


def _options(options: Sequence[Any]) -> str:
    texts = [_text(option) for option in options]
    if any("," in text for text in texts):
        return "; ".join(texts)
    return format_names(texts, _SHOWN_OPTIONS)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
