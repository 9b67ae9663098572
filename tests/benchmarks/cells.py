"""Results of long measurements, a file for each cell: what is stopped goes on, and what was measured can be read."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar


class Cell(Protocol):
    """One measurement of many, and the name of its result file."""

    @property
    def file(self) -> str: ...


AnyCell = TypeVar("AnyCell", bound=Cell)


def run_cells(
    cells: Sequence[AnyCell], run: Callable[[AnyCell], dict[str, Any]], folder: Path, processes: int | None = None
) -> dict[AnyCell, dict[str, Any]]:
    """Return the results of all cells, each with its ``seconds``; those without a file are run, one in a process.

    Args:
        cells: The cells.
        run: Measures one, in a process of its own.
        folder: Folder of the result files.
        processes: Number of processes at a time; None for one on each core.
    """
    missing = [cell for cell in cells if not (folder / cell.file).is_file()]
    if missing:
        context = multiprocessing.get_context("spawn")
        count = min(len(missing), processes or os.cpu_count() or 1)
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            done = [pool.submit(_run_cell, cell, run, folder) for cell in missing]
            for cell, future in zip(missing, done, strict=True):
                print(f"  {cell.file}: {future.result():.0f} s", file=sys.stderr, flush=True)
    return {cell: json.loads((folder / cell.file).read_text()) for cell in cells}


def _run_cell(cell: AnyCell, run: Callable[[AnyCell], dict[str, Any]], folder: Path) -> float:
    from ttmoe.atomic_write import write_atomically

    began = time.perf_counter()
    found = run(cell)
    seconds = time.perf_counter() - began
    write_atomically(folder / cell.file, json.dumps(found | {"seconds": seconds}, indent=1).encode())
    return seconds
