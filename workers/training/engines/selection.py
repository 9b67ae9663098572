"""The engine of a training, from its settings."""

from __future__ import annotations

from ttmoe.errors import InputError
from workers.training.engines.engine import SINGLE_PROCESS, Engine
from workers.training.settings import TrainSettings


def engine_key(settings: TrainSettings) -> tuple[object, ...]:
    """Return what two settings have in common that name the same engine."""
    if settings.engine == "deepspeed":
        return settings.engine, settings.deepspeed
    return ("torch",) if settings.engine == "auto" else (settings.engine,)


def make_engine(settings: TrainSettings) -> Engine:
    """Return the engine that the settings name, in this process and its group. An ``auto`` is ``torch``.

    Raises:
        InputError: If several processes are to train with an engine of one, or DeepSpeed cannot be imported.
    """
    from workers.training.engines.process_group import group_size, join_alone

    if settings.engine in ("auto", "torch"):
        if group_size() > 1:
            raise InputError(f"engine torch has one process, not {group_size()}", where="train.engine",
                             fix="use ddp or deepspeed")  # fmt: skip
        return SINGLE_PROCESS
    join_alone()
    if settings.engine == "ddp":
        from workers.training.engines.data_parallel import DataParallel

        return DataParallel()
    from workers.training.engines.zero import Zero

    return Zero(settings.deepspeed)
