"""The devices of workers, and which of them are left out because work on them fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from workers.failure import Failure


@dataclass(frozen=True)
class WorkerDevice:
    """The device that a worker computes on.

    Attributes:
        node: Ray's id of the node.
        address: Address of the node.
        gpus: Ray's ids of the GPUs assigned to the worker; empty if it has none.
    """

    node: str
    address: str = ""
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        node = f"node {self.address or self.node[:8]}"
        return f"{'GPUs' if len(self.gpus) > 1 else 'GPU'} {', '.join(self.gpus)} of {node}" if self.gpus else node


@dataclass
class DeviceRecord:
    """Which devices failed.

    A device is left out when units without a common job fail on it one after the other: a single job that fails
    wherever it runs leaves out no device.

    Attributes:
        left_out: The devices that get no more work.
        last_failure: The last failure of a device.
    """

    left_out: set[WorkerDevice] = field(default_factory=set)
    last_failure: Failure | None = None
    _failed: dict[WorkerDevice, list[frozenset[str]]] = field(default_factory=dict)  # since the last success
    _failed_on: dict[str, set[WorkerDevice]] = field(default_factory=lambda: defaultdict(set))  # by job
    _failed_nodes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by job: errors of the code

    def add(self, device: WorkerDevice, outcomes: Mapping[str, Any]) -> dict[str, Any]:
        """Record how a unit ended on a device, and return its outcomes, with the device named in its failures.

        Args:
            device: The device.
            outcomes: Result or Failure of each job of the unit.
        """
        if any(not isinstance(outcome, Failure) for outcome in outcomes.values()):
            self._failed.pop(device, None)
        kinds = {key: each.kind for key, each in outcomes.items() if isinstance(each, Failure)}
        for key in (key for key, kind in kinds.items() if kind == "code"):
            self._failed_nodes[key].add(device.node)
        keys = frozenset(key for key, kind in kinds.items() if kind == "device")
        if not keys:
            return dict(outcomes)
        earlier = self._failed.setdefault(device, [])
        if any(keys.isdisjoint(other) for other in earlier):
            self.left_out.add(device)
        earlier.append(keys)
        where = f"on {device}, which gets no more work" if device in self.left_out else f"on {device}"
        named = {key: replace(outcomes[key], message=f"{where}: {outcomes[key].message}") for key in keys}
        for key in keys:
            self._failed_on[key].add(device)
            self.last_failure = named[key]
        return {**outcomes, **named}

    def rules_out(self, device: WorkerDevice | None, keys: Iterable[str]) -> bool:
        """Return whether a unit of these jobs should run elsewhere, if it can.

        The device is left out, or one of the jobs failed on it, or one had an error of the code on its node.
        """
        return device in self.left_out or any(
            device in self._failed_on.get(key, ()) or (device and device.node in self._failed_nodes.get(key, ()))
            for key in keys
        )


def name_devices(devices: Iterable[WorkerDevice]) -> str:
    """Return devices as text without repetitions, such as ``GPU 0 of node 10.0.0.1, GPU 1 of node 10.0.0.1``."""
    return ", ".join(sorted(set(map(str, devices))))
