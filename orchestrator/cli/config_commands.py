"""``ttmoe config``: commands on the format of config files."""

from __future__ import annotations

import typer

from orchestrator.cli.options import command, command_group

config_commands = command_group("Describe config files.")


# With a single command, typer would leave its name out.
@config_commands.callback()
def _keep_name() -> None:
    pass


@command(config_commands, "schema")
def config_schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    from orchestrator.config.json_schema import schema_text

    typer.echo(schema_text(), nl=False)
