"""Row ``start``: the CPU time of short commands, against the imports of the libraries that they stand on.

All are processes of their own that take turns, on a tiny library of real files.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.machine import ROOT
from tests.benchmarks.many import SCRIPT
from tests.benchmarks.measuring import QUICK, Times, duration
from tests.benchmarks.table import Finding, at_most

ROUNDS = 2 if os.environ.get(QUICK) else 7
READING_LIMIT, PREDICT_LIMIT = 1.2, 1.3
MAKE = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
import predict_library, tiny
from orchestrator.registry import Registry
folder = Path(sys.argv[2])
(folder / "empty").mkdir()
Registry.open(f"sqlite:///{folder}/empty/mlflow.db", folder / "empty")
store = folder / "empty" / "mlflow.db"
predict_library.register_library(folder / "runs", tiny.save_base(folder / "base"), folder / "scratch", store)
"""
MLFLOW, MODEL = "import mlflow.tracking", "import torch, transformers"
LOADED = f"""
import sys; {MODEL}
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
transformers.AutoModel.from_pretrained(sys.argv[1])
"""


def run() -> Iterator[Finding]:
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*python, MAKE, ROOT / "tests", folder], cwd=ROOT, capture_output=True, check=True)
        commands = {
            "mlflow": [*python, MLFLOW],
            "experts ls": [SCRIPT, "experts", "ls"],
            "status": [SCRIPT, "status"],
            "model": [*python, MODEL],
            "loaded": [*python, LOADED, f"{folder}/base"],
            "predict": [SCRIPT, "predict", "red north1", "cat south2"],
        }
        seconds = _cpu_seconds(commands, folder)
    rounds = zip(seconds["model"], seconds["loaded"], strict=True)
    seconds["limit"] = [PREDICT_LIMIT * model + max(0.0, loaded - model) for model, loaded in rounds]
    times = Times(seconds)
    for command in ("experts ls", "status"):
        yield Finding(f"`ttmoe {command}`, CPU time", duration(times.median(command)),
                      f"`{MLFLOW}` {duration(times.median('mlflow'))}",
                      *at_most(times.ratio(command, "mlflow"), READING_LIMIT))  # fmt: skip
    parts = f"`{MODEL}` {duration(times.median('model'))}, with loading the base {duration(times.median('loaded'))}"
    yield Finding("`ttmoe predict` of two texts, CPU time", duration(times.median("predict")),
                  f"{PREDICT_LIMIT} times the imports, and the loading: {duration(times.median('limit'))} ({parts})",
                  *at_most(times.ratio("predict", "limit"), 1.0))  # fmt: skip


def _cpu_seconds(commands: Mapping[str, Sequence[str | Path]], folder: str) -> dict[str, list[float]]:
    """Run the commands in turn, every other round backwards, after one round to warm the caches of files."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(-1, ROUNDS):
        for name in commands if i % 2 == 0 else reversed(commands):
            before = _used()
            subprocess.run(commands[name], cwd=folder, capture_output=True, check=True)
            found[name] += [_used() - before] if i >= 0 else []
    return found


def _used() -> float:
    """CPU seconds of the ended child processes, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
