"""The registered router of a library, and the base to run it on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.experts.base_folder import registered_base
from orchestrator.experts.router_state import read_router_state
from orchestrator.predict.messages import print_line
from orchestrator.predict.request import PredictRequest
from orchestrator.registry.library import open_library
from ttmoe.base import Base, choose_device
from ttmoe.errors import InputError

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RegisteredRouter:
    """A router that can be loaded.

    Attributes:
        folder: Local folder of the router and its experts.
        base: The base that the router was trained on.
    """

    folder: Path
    base: Base

    def load(self, device: str) -> RoutedModel:
        """Load the router, its experts and the base onto ``auto``, ``cpu`` or ``cuda``."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the base is a local folder: no request to a hub is needed
        from ttmoe.routed import RoutedModel

        return RoutedModel.load(self.folder, self.base, device=choose_device(device))


def open_router(request: PredictRequest, messages: Console) -> RegisteredRouter:
    """Find the champion router of the requested library; print a warning to ``messages`` if it is stale.

    Raises:
        InputError: If the library has no router, its base is not found, or the device is unknown.
    """
    if request.device not in DEVICES:
        what = f"there is no device {request.device!r}"
        raise InputError(what, where="--device", fix=f"use one of: {', '.join(DEVICES)}")
    registry, name = open_library(request.store, request.library)
    routing = read_router_state(registry, name, registry.experts(name))
    if routing is None:
        fix = "complete its `ttmoe run`: the router is trained last"
        raise InputError(f"library {name!r} has no router", where=str(request.store), fix=fix)
    if routing.stale:
        print_line(messages, f"warning: router v{routing.router.version} of {name} is {routing.describe()}")
    folder = registry.fetch(routing.router)
    return RegisteredRouter(folder, registered_base(routing.router, folder, request.store.root.resolve() / "cache"))
