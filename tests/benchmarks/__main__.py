"""``python -m tests.benchmarks [names...]``: run the rows, print one table and write RESULTS.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tests.benchmarks.machine import describe
from tests.benchmarks.measuring import BUSY, QUICK
from tests.benchmarks.table import Finding, markdown, plain

PAGE, NOTES = (Path(__file__).with_name(name) for name in ("RESULTS.md", "NOTES.md"))
ROWS = {
    "layer": "layer:run",
    "step": "step:run",
    "memory": "step:run_memory",
    "mixed": "mixed:run",
    "loading": "loading:run",
    "together": "together:run",
    "library": "library:run",
    "many": "many:run",
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
    machine, findings, began = describe(), [], time.monotonic()
    print("\n".join(machine), flush=True)
    for name in names:
        for finding in row(name)():
            findings.append(finding)
            print(f"[{time.monotonic() - began:4.0f} s] {' | '.join(map(str, vars(finding).values()))}", flush=True)
    print(f"\n{plain(findings)}")
    if names == list(ROWS) and not given.quick:  # the page is one whole run, never parts of several
        PAGE.write_text(page(findings, machine, time.monotonic() - began))
        print(f"\nwritten: {PAGE}")


def page(findings: list[Finding], machine: list[str], seconds: float) -> str:
    command = " ".join(["python -m tests.benchmarks", *sys.argv[1:]])
    clock = "CPU time of one thread, for others used the machine" if os.environ.get(BUSY) else "wall time"
    where = "\n".join(f"- {line}" for line in machine)
    notes = NOTES.read_text() if NOTES.exists() else ""
    return f"""# Benchmarks

Written by `{command}` (`make benchmark`) in {seconds / 60:.0f} minutes. Every ratio is taken within one
run: the subjects take turns (A B B A ...) after a warm-up, and the ratio is the median over rounds of the ratio
within a round. Times are {clock}.

{where}

{markdown(findings)}

{notes}"""


if __name__ == "__main__":
    main()
