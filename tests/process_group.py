"""Groups of processes that train experts together, as the pool starts them, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_in_group(size: int, jobs: Sequence[Any], folder: Path, seconds: float = 300.0) -> list[list[Any]]:
    """Run expert jobs one after another in one group of processes.

    Returns:
        For each process, for each job: its outcome, the reports of progress that it made, how often the process has
        loaded a base, and how many numbers of the base's weights it holds outside of a pass.
    """
    from workers.training.engines.process_group import free_address

    context = multiprocessing.get_context("spawn")
    address, results = free_address("127.0.0.1"), context.Queue()
    arguments = [(address, rank, size, jobs, str(folder), results) for rank in range(size)]
    processes = [context.Process(target=_run, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=seconds) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(size)]


def _run(address: str, rank: int, size: int, jobs: Sequence[Any], folder: str, results: Any) -> None:
    log = os.open(Path(folder, f"rank{rank}.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from workers.base.resident import count_base_loads, load_resident_base
    from workers.expert_runner import run_experts
    from workers.training.engines.process_group import join_group

    torch.set_num_threads(1)
    if size > 1:
        join_group(address, rank, size, "127.0.0.1")
    outcomes = []
    for job in jobs:
        reports: list[Any] = []
        outcome = run_experts([job], reports.append)[job.task]
        resident = load_resident_base(job.base, job.device, job.train)
        held = sum(parameter.numel() for parameter in resident.bank.model.parameters())
        outcomes.append((outcome, reports, count_base_loads(), held))
    results.put((rank, outcomes))
    results.close()
    results.join_thread()
    os._exit(0)  # no process waits for another at exit
