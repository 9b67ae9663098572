"""``ttmoe tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import ConfigArgument, JsonOption, SetOption, console

MethodOption = Annotated[
    str | None, typer.Option(metavar="METHOD", help="truncate, tpe, random or grid (search.method).")
]
TrialsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Trials of each task (search.trials).")]


def tune_config(
    config: ConfigArgument,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Task to search on; can be repeated. By default those of the config."),
    ] = None,
    method: MethodOption = None,
    trials: TrialsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the space, a sample of it and a forecast, and train nothing.")
    ] = False,
    apply: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the config with the recommended adapters to this file."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for TT ranks and shapes that reach a high accuracy with few parameters.

    Repeat the command to continue: trials that have ended are not made again, and the others resume.
    """
    from orchestrator.plan.json_output import to_json
    from orchestrator.run.tune_driver import TuneRequest, show_search, tune_library

    chosen = [f"search.method={method}"] if method else []
    chosen += [f"search.trials={trials}"] if trials else []
    request = TuneRequest(config, [*(overrides or []), *chosen], task or ())
    loaded = request.load()
    if dry_run:
        show_search(loaded, console(), as_json=as_json)
        return
    if apply:
        from orchestrator.search.applying import check_target, write_recommended

        check_target(loaded, apply)
    found = tune_library(loaded, console(quiet=as_json))
    if as_json:
        typer.echo(to_json(vars(found), exact=("point", "sections", "space")))
    if apply:
        write_recommended(loaded, found.tasks, apply)
        typer.echo(f"wrote {apply}; next: ttmoe run {apply}", err=as_json)
