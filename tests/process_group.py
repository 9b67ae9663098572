"""Groups of processes that train experts together, as the pool starts them, without Ray."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple


class Trained(NamedTuple):
    """What a process tells of a job.

    Attributes:
        outcome: Its result or failure.
        reports: The reports of progress.
        base_loads: How often the process has loaded a base.
        held: How many numbers of the base's weights it holds outside of a pass.
        formats: Number formats of the parts of divided weights.
    """

    outcome: Any
    reports: list[Any]
    base_loads: int
    held: int
    formats: set[str]


def run_in_group(
    jobs: Sequence[Any],
    folder: Path,
    hosts: Sequence[tuple[str, str]] = (("", "127.0.0.1"), ("", "127.0.0.1")),
    *,
    stops_at: Sequence[int | None] = (),
    seconds: float = 300.0,
) -> list[list[Trained]]:
    """Run expert jobs one after another in a group with a process for each host.

    Args:
        jobs: The jobs.
        folder: Receives what the processes print.
        hosts: The network namespace of each process, or "", and its address there.
        stops_at: For each job, the step after which the first process is asked to stop; None, or nothing, for never.
        seconds: Longest wait.

    Returns:
        For each process, what it tells of each job.
    """
    context = multiprocessing.get_context("spawn")
    with ThreadPool(1) as thread:  # a thread may change its namespace alone
        address = thread.apply(_free_address, (hosts[0],))
    results = context.Queue()
    processes = [
        context.Process(target=_run, args=(address, rank, hosts, jobs, str(folder), stops_at, results))
        for rank in range(len(hosts))
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=seconds) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(len(hosts))]


def trained_steps(reports: Sequence[Any]) -> list[int]:
    """Return the steps of training that were reported."""
    return [report.step for report in reports if "train.loss" in report.metrics]


def _free_address(host: tuple[str, str]) -> str:
    from workers.training.engines.process_group import free_address

    _enter(host[0])
    return free_address(host[1])


def _enter(namespace: str) -> None:
    """Move the calling thread to a network namespace."""
    if namespace:
        with Path("/var/run/netns", namespace).open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")


def _run(
    address: str,
    rank: int,
    hosts: Sequence[tuple[str, str]],
    jobs: Sequence[Any],
    folder: str,
    stops_at: Sequence[int | None],
    results: Any,
) -> None:
    log = os.open(Path(folder, f"rank{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _enter(hosts[rank][0])
    import torch

    from workers.base.resident import count_base_loads, load_resident_base
    from workers.expert_runner import run_experts
    from workers.stopping import stopped_by
    from workers.training.engines.process_group import join_group

    torch.set_num_threads(1)
    join_group(address, rank, len(hosts), hosts[rank][1])
    told = []
    for job, last in itertools.zip_longest(jobs, stops_at):
        reports: list[Any] = []

        def asked_to_stop(reports: list[Any] = reports, last: int | None = last) -> bool:
            return rank == 0 and last is not None and max(trained_steps(reports), default=0) >= last

        with stopped_by(asked_to_stop):
            outcome = run_experts([job], reports.append)[job.task]
        resident = load_resident_base(job.base, job.device, job.train)
        weights = list(resident.bank.model.parameters())
        held = sum(weight.numel() for weight in weights)
        formats = {str(weight.ds_tensor.dtype) for weight in weights if hasattr(weight, "ds_tensor")}
        told.append(Trained(outcome, reports, count_base_loads(), held, formats))
    results.put((rank, told))
    results.close()
    results.join_thread()
    os._exit(0)  # no process waits for another at exit
