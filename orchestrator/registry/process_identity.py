"""Which process on which host did something, and whether it still runs."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Presence = Literal["running", "gone", "unknown"]


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, so described that no other process is taken for it.

    Attributes:
        host: Name of its host, for messages: two hosts or containers can have the same.
        machine: Identifies the kernel since its start and the namespace of process ids. Processes with the same see
            one another's ids; a container has a namespace of its own.
        process: Its id, which the system gives to another process when it has ended.
        started: When it started, to tell it from those; empty if unknown.
    """

    host: str
    machine: str
    process: int
    started: str


def this_process() -> ProcessIdentity:
    """Return the identity of this process."""
    return ProcessIdentity(socket.gethostname(), machine_id(), os.getpid(), _started(os.getpid()))


def machine_id() -> str:
    """Return what identifies this machine, or this container of it, until it is started again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux, or a sandbox that hides it
        return f"{socket.gethostname()} {uuid.getnode():x}"
    return f"{boot} {namespace}"


def presence(identity: ProcessIdentity) -> Presence:
    """Return whether a process still runs; ``unknown`` if it belongs to another machine or cannot be seen."""
    if identity.machine != machine_id():
        return "unknown"
    if not _exists(identity.process):
        return "gone"
    started = _started(identity.process)
    if not started or not identity.started:  # another user's process, which the system hides
        return "unknown"
    return "running" if started == identity.started else "gone"


def _exists(process: int) -> bool:
    """Return whether a process exists. The kernel is asked: /proc may hide the processes of other users (hidepid)."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def _started(process: int) -> str:
    """Return when a process started; empty if it cannot be read, ``ended`` if only its exit code is left of it."""
    try:
        # After the name, which may contain spaces: the state, and as twentieth the ticks from the start of the machine
        # to that of the process. psutil adds them to a time that moves when the clock is set.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        other = psutil.Process(process)
        return "ended" if other.status() == psutil.STATUS_ZOMBIE else str(other.create_time())
    except psutil.Error:
        return ""
