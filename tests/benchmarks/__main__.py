"""``python -m tests.benchmarks [names...]``: run the rows, print one table, keep what was found, write RESULTS.md."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib import import_module

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tests.benchmarks.machine import describe
from tests.benchmarks.measuring import BUSY, QUICK
from tests.benchmarks.record import PAGE, Record, keep, kept, page
from tests.benchmarks.table import Finding, plain

ROWS = {
    "layer": "layer:run",
    "step": "step:run",
    "memory": "step:run_memory",
    "gpu": "gpu:run",
    "mixed": "mixed:run",
    "loading": "loading:run",
    "base-loading": "base_loading:run",
    "together": "together:run",
    "engines": "engines:run",
    "library": "library:run",
    "many": "many:run",
    "many-real": "many_real:run",
    "start": "start:run",
    "routing": "routing:run_minilm",
    "routes-17": "routing:run_minilm_17_routes",
    "routing-17": "routing:run_minilm_17",
    "routing-smollm2": "routing:run_smollm2",
    "router": "router_speed:run",
    "wide-router": "wide_router:run",
    "states": "states:run",
    "surface": "surface:run",
    "stages": "stages:run",
    "routed": "routed:run",
    "predicting": "predicting:run",
    "trials": "trials:run",
    "truncation": "truncation:run",
    "front": "front:run",
    "sampling": "sampling:run",
}


def row(name: str) -> Callable[[], Iterator[Finding]]:
    module, _, function = ROWS[name].partition(":")
    return getattr(import_module(f"tests.benchmarks.{module}"), function)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *ROWS], metavar="name", help=f"of {', '.join(ROWS)}; all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, to try the code; writes nothing")
    parser.add_argument("--busy", action="store_true", help="one thread and CPU time, where others use the machine")
    given = parser.parse_args()
    names = given.names or list(ROWS)
    if given.quick:
        os.environ[QUICK] = "1"
    if given.busy:
        os.environ |= {BUSY: "1", "OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
    machine, findings = describe(), []
    print("\n".join(machine), flush=True)
    for name in names:
        found, began = [], time.monotonic()
        for finding in row(name)():
            found.append(finding)
            print(f"[{time.monotonic() - began:4.0f} s] {' | '.join(map(str, vars(finding).values()))}", flush=True)
        findings += found
        if not given.quick and any(finding.ours != "not run" for finding in found):
            minutes = (time.monotonic() - began) / 60
            options = " --busy" if given.busy else ""
            clock = "CPU time of one thread, for others used the machine" if given.busy else "wall time"
            keep(Record(name, f"python -m tests.benchmarks {name}{options}", date.today().isoformat(), minutes, clock,
                        machine, found))  # fmt: skip
    print(f"\n{plain(findings)}")
    if not given.quick:
        PAGE.write_text(page(kept(ROWS)))
        print(f"\nwritten: {PAGE}")


if __name__ == "__main__":
    main()
