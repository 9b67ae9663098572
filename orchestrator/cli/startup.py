"""What lets a short command answer soon: rare garbage collections, and MLflow without packages for data."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from importlib import import_module
from types import FrameType

GC_THRESHOLD = 100_000
"""New objects before a garbage collection. With Python's 700, a quarter of a command's time is spent on collections
while it imports modules, whose objects all stay."""
DATA_PACKAGES = ("numpy", "pandas", "pyarrow")
_is_command = False
_terminated_by = 0


def prepare_command() -> None:
    """Prepare this process for the one command that it runs: SIGTERM and a closed terminal end it as Ctrl-C does."""
    global _is_command
    _is_command = True
    gc.set_threshold(GC_THRESHOLD)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _terminate)
    atexit.register(gc.freeze)  # Python collects everything twice when it ends


def _terminate(number: int, frame: FrameType | None) -> None:
    global _terminated_by
    _terminated_by = number
    raise KeyboardInterrupt


def terminated_by() -> int:
    """Return the signal that a KeyboardInterrupt is due to; 0 for Ctrl-C. Ray raises a new one, without it."""
    return _terminated_by


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
