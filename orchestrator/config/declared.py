"""What a config only declares: a base without weights, and tasks without rows. It can be planned and not run."""

from __future__ import annotations

from orchestrator.config.schema import Config
from ttmoe.errors import InputError


def refuse_declared(config: Config) -> None:
    """Raise InputError if the base has no weights, or a task no rows."""
    if config.base.config:
        what = "the base is a config without weights, which can be planned and not run"
        raise InputError(what, where="base.config", fix="name the model: base.hub, base.folder or base.package")
    if declared := [name for name, entry in config.tasks.items() if entry.declared]:
        others = f" and {len(declared) - 1} more tasks" if declared[1:] else ""
        what = f"the rows of {declared[0]}{others} are only declared, which can be planned and not run"
        fix = "give the data: `source`, `columns` and `label`"
        raise InputError(what, where=f"tasks.{declared[0]}.declared", fix=fix)
