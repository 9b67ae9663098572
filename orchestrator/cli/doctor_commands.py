"""``ttmoe doctor``: is this machine, or a cluster, able to train experts, and does it lose nothing?"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import JsonOption, console
from ttmoe.errors import InputError


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="Config whose storage, MLflow store and resources are checked."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Check this cluster, by a job: a name in the config or in clusters.yaml, or http://HOST:8265.",
        ),
    ] = None,
    drill: Annotated[
        bool,
        typer.Option("--drill", help="Run a tiny library, and kill a worker, the driver and the connection to MLflow."),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="With --drill: keep the library and its files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a machine or a cluster, and train a two-step expert there.

    Each line says what was found and what to do. Exits with 1 if a check failed. With --drill, a library of tiny
    experts is interrupted in every way and continued, to show that nothing is lost. What is made is removed.
    """
    from orchestrator.config.loading import load_config

    if keep and not drill:
        raise InputError("--keep requires --drill", where="doctor", fix="add --drill, or remove --keep")
    loaded = load_config(config) if config else None
    if cluster:
        from orchestrator.config.clusters import find_cluster
        from orchestrator.doctor.cluster_job import examine_cluster

        profile = find_cluster(cluster, loaded.config.clusters if loaded else None)
        command = ["doctor", *(["--drill"] if drill else []), *(["--keep"] if keep else [])]
        if not examine_cluster(loaded, profile, command, console(), as_json=as_json):
            raise typer.Exit(1)
        return
    from orchestrator.doctor.check_screen import show_checks
    from orchestrator.doctor.place import place_of

    place = place_of(loaded)
    if drill:
        from orchestrator.doctor.drill import run_drill

        checks = run_drill(place, keep=keep)
    else:
        from orchestrator.doctor.examination import examine

        checks = examine(place)
    if not show_checks(checks, console(), as_json=as_json):
        raise typer.Exit(1)
