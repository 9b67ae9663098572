"""The routed model of a library: what is registered, on the base where it lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.experts.base_folder import registered_base
from orchestrator.experts.router_state import read_router_state
from orchestrator.registry.library import open_library
from ttmoe.base import Base, choose_device
from ttmoe.errors import InputError

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RegisteredRouter:
    """The router's ``folder``, experts included, and the ``base`` that it answers on."""

    folder: Path
    base: Base

    def load(self, device: str) -> RoutedModel:
        """The model on ``auto``, ``cpu`` or ``cuda``."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the base lies in a folder; nothing is to be asked of a hub
        from ttmoe.routed import RoutedModel

        return RoutedModel.load(self.folder, self.base, device=choose_device(device))


def open_router(root: Path, library: str | None, device: str, messages: Console) -> RegisteredRouter:
    """The router that answers for the library; one line in ``messages`` where it is stale.

    Raises InputError where there is none, its base is not found, or ``device`` is none.
    """
    if device not in DEVICES:
        raise InputError(f"there is no device {device!r}", where="--device", fix=f"give one of: {', '.join(DEVICES)}")
    registry, name = open_library(root, library)
    routing = read_router_state(registry, name, registry.experts(name))
    if routing is None:
        raise InputError(f"library {name!r} has no router yet", where=str(root), fix="let its run come to its end")
    if routing.stale:
        print_line(messages, f"warning: router v{routing.router.version} of {name} is {routing.describe()}")
    folder = registry.fetch(routing.router)
    return RegisteredRouter(folder, registered_base(folder))


def print_line(messages: Console, line: str) -> None:
    """One line as it is: a pipe gets no line breaks, and texts hold no markup."""
    messages.print(line, soft_wrap=True, markup=False, highlight=False)
