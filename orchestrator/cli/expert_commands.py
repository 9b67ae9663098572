"""``ttmoe experts``: the commands on the experts of a library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import (
    JsonOption,
    LibraryOption,
    RootOption,
    SetOption,
    TaskArgument,
    UriOption,
    VersionOption,
    command,
    command_group,
    console,
    selected_store,
)
from orchestrator.cli.startup import import_registry
from ttmoe.errors import InputError

experts = command_group("Manage the experts of a library.")


@command(experts, "ls")
def experts_ls(
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
    every: Annotated[bool, typer.Option("--all", help="List all versions, not only the current ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the experts and the router of a library."""
    import_registry()
    from orchestrator.experts.listing import print_experts

    print_experts(selected_store(root, uri, quiet=as_json), library, every, as_json, console())


@command(experts, "show")
def experts_show(
    task: TaskArgument,
    version: VersionOption = None,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all recorded details of an expert."""
    import_registry()
    from orchestrator.experts.showing import show_expert

    show_expert(selected_store(root, uri, quiet=as_json), library, task, version, as_json, console())


@command(experts, "verify")
def experts_verify(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="TASK", help="Tasks (TASK or TASK@v3); by default all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Verify all versions, not only the current ones.")] = False,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Check the files and the scores of experts.

    Each expert is loaded from the registry, compared with its record, and run alone and in a batch with others.
    """
    from orchestrator.experts.verifying import verify_experts

    verify_experts(selected_store(root, uri), library, tasks or [], every, console())


@command(experts, "promote")
def experts_promote(
    task: TaskArgument,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", help="Version; by default the candidate.")
    ] = None,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Make a version the champion of its task."""
    import_registry()
    from orchestrator.experts.promoting import promote_expert

    promote_expert(selected_store(root, uri), library, task, version, console())


@command(experts, "rm")
def experts_rm(
    task: TaskArgument,
    version: Annotated[int | None, typer.Option("--version", metavar="N", help="Version; by default all.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove a version even if the router uses it.")] = False,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Remove an expert, its runs and its work folders.

    The next run of a config that contains the task trains it again.
    """
    import_registry()
    from orchestrator.experts.removing import remove_expert

    remove_expert(selected_store(root, uri), library, task, version, yes, force, console())


@command(experts, "compress")
def experts_compress(
    task: TaskArgument,
    config: Annotated[str, typer.Option("--config", metavar="CONFIG", help="Config of the library, with its rows.")],
    parameters: Annotated[
        int | None, typer.Option("--parameters", metavar="N", help="The best expert of at most so many parameters.")
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(
            "--accuracy-within", metavar="X", help="The smallest expert that loses at most so much, such as 0.005."
        ),
    ] = None,
    version: VersionOption = None,
    overrides: SetOption = None,
) -> None:
    """Cut an expert to a smaller rank and register it as a candidate.

    Nothing is trained but a short distillation. The cuts are compared on the task's validation rows, which the config
    names, as it names the library and the store.
    """
    from orchestrator.config.loading import load_config

    loaded = load_config(config, overrides or [])
    from orchestrator.experts.compressing import compress_expert

    compress_expert(loaded, task, version, parameters, within, console())


@command(experts, "export")
def experts_export(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[TASK] FOLDER", help="The task, as TASK, TASK@v3 or TASK@ALIAS, and the folder to write."
        ),
    ],
    every: Annotated[
        bool, typer.Option("--all", help="Every expert that writes text, each in a folder of its own, for vLLM.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="peft (a LoRA adapter) or ttmoe (the expert's own files).")
    ] = "peft",
    version: VersionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Export an expert as a PEFT LoRA adapter or as its own files; with --all, every expert that writes text."""
    if len(places) != (1 if every else 2) or (every and version is not None):
        expected = "FOLDER, and no version" if every else "TASK and FOLDER"
        raise InputError(f"expected {expected}, given {' '.join(places)}", where="ttmoe experts export",
                         fix="ttmoe experts export TASK FOLDER, or ttmoe experts export --all FOLDER")  # fmt: skip
    if every:
        from orchestrator.experts.exporting_library import export_library

        export_library(selected_store(root, uri), library, Path(places[0]), form, force, console())
        return
    from orchestrator.experts.exporting import export_expert

    export_expert(selected_store(root, uri), library, places[0], version, Path(places[1]), form, force, console())


@command(experts, "import")
def experts_import(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A ttmoe expert, or a PEFT LoRA adapter.")],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="Task of the expert.")],
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Labels in the order of the head's outputs; by default from the folder."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="text, pair, generate or chat; by default from the folder, or else text."),
    ] = None,
    library: LibraryOption = None,
    root: RootOption = None,
    uri: UriOption = None,
) -> None:
    """Register an expert from a folder as a candidate."""
    from orchestrator.experts.importing import import_expert

    import_expert(selected_store(root, uri), library, folder, task, labels, kind, console())
