"""What lets a short command answer soon: rare garbage collections, and MLflow without packages for data."""

from __future__ import annotations

import atexit
import gc
import io
import sys
from importlib import import_module

from orchestrator.run.termination import end_on_signals

GC_THRESHOLD = 100_000
"""New objects before a garbage collection. With Python's 700, a quarter of a command's time is spent on collections
while it imports modules, whose objects all stay."""
DATA_PACKAGES = ("numpy", "pandas", "pyarrow")
_is_command = False


def prepare_command() -> None:
    """Prepare this process for the one command that it runs: SIGTERM and a closed terminal end it as Ctrl-C does."""
    global _is_command
    _is_command = True
    gc.set_threshold(GC_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            # A pipe gets UTF-8, as JSON is; a terminal shows what it cannot write as an escape.
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
    end_on_signals()
    atexit.register(gc.freeze)  # Python collects everything twice when it ends


def import_registry() -> None:
    """Import the registry for a command that registers no model, with MLflow as its skinny client.

    MLflow imports numpy, pandas, pyarrow and what they bring (SciPy) wherever they are installed. Only models and data
    sets need them, so they are hidden during the import of MLflow. The process can import them later, but its MLflow
    can save no model. Does nothing outside a process for one command, or if MLflow is imported already.
    """
    if not _is_command or "mlflow" in sys.modules:
        return
    hidden = [name for name in DATA_PACKAGES if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # the import of None raises ImportError
    try:
        import_module("orchestrator.registry")
    finally:
        for name in hidden:
            del sys.modules[name]
