"""The group of processes that train an expert together: how they find each other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

# A collective of torch ends after minutes, with an error that names no cause. The pool watches the processes.
TIMEOUT = timedelta(days=1)


def free_address(host: str) -> str:
    """Return ``host:port`` with a free port of this machine, at which the processes of a group can meet.

    Args:
        host: Address of this machine, as the others reach it.
    """
    with socket.socket() as listener:
        listener.bind((host, 0))
        return f"{host}:{listener.getsockname()[1]}"


def join_group(address: str, rank: int, size: int, host: str) -> None:
    """Join a group; return when all its processes have.

    Args:
        address: ``host:port`` on the machine of process 0, the same in all processes.
        rank: Number of this process, from 0.
        size: Number of processes.
        host: Address of this machine, as the others reach it.
    """
    interface = interface_of(host)
    if interface:  # else a host name that resolves to a loopback address would be told to the others
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    # DeepSpeed reads these. Each process sees its own GPU alone, as number 0.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=TIMEOUT)


def join_alone() -> None:
    """Join a group of this process alone, unless it is in a group; DeepSpeed needs one."""
    if not dist.is_initialized():
        join_group(free_address("127.0.0.1"), 0, 1, "127.0.0.1")


def group_size() -> int:
    """Return the number of processes in this process's group; 1 if it is in none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def interface_of(host: str) -> str:
    """Return the network interface that has this address; empty if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return name
    return ""
