"""Parts of a base on a local disk: DeepSpeed's settings for them, and its operator, compiled once on each machine."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from ttmoe.base import Base, empty_body
from ttmoe.errors import InputError

_log = logging.getLogger(__name__)
_watchers: list[subprocess.Popen[bytes]] = []  # with their pipes
_BUFFERS = 4  # weights in main memory at a time; a module of a language model has one that is large
_OPERATORS = ("async_io", "pin_memory")  # the first loads the second


def disk_settings(base: Base, folder: str, processes: int) -> dict[str, Any]:
    """Return DeepSpeed's settings of stage 3 for parts of a base on a disk.

    Args:
        base: The base.
        folder: Folder on a local disk.
        processes: Number of processes that divide the base.
    """
    largest = max(weight.numel() for weight in empty_body(base).parameters())
    return {
        "offload_param": {
            "device": "nvme",
            "nvme_path": str(_own_folder(Path(folder))),
            "buffer_count": _BUFFERS,
            "buffer_size": -(-largest // processes),
        },
        # A weight has a buffer from its reading to its release. DeepSpeed's reading ahead, and weights that stay
        # gathered, would take all buffers; the next weight then is an error.
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
    }


def _own_folder(folder: Path) -> Path:
    """Return the folder of this process, which is removed when it ends.

    DeepSpeed names files by the number of the process in its group: groups on one machine would share them. The pool
    kills processes, so a shell removes the folder when a pipe from this process closes. Folders that a machine left
    when it went down are removed here.
    """
    host = os.uname().nodename
    for other in folder.glob(f"ttmoe-{host}-*"):
        if not psutil.pid_exists(int(other.name.rpartition("-")[2])):
            shutil.rmtree(other, ignore_errors=True)
    own = folder / f"ttmoe-{host}-{os.getpid()}"
    # Ray kills the children of a worker too, but not the orphan that this shell leaves.
    script = 'exec 3<&0; (read -r line <&3; rm -rf -- "$0") >/dev/null 2>&1 &'
    watcher = subprocess.Popen(["/bin/sh", "-c", script, str(own)], stdin=subprocess.PIPE, start_new_session=True)
    watcher.wait()
    _watchers.append(watcher)
    return own


@cache
def require_disk_operator() -> None:
    """Compile DeepSpeed's operator ``async_io``, unless it is in torch's cache of extensions; this takes minutes.

    Raises:
        InputError: If it cannot be compiled.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        with _only_builder(Path(_extensions_folder())):
            AsyncIOBuilder().load(verbose=False)
    except Exception as error:  # of many classes
        what = f"DeepSpeed cannot build its operator async_io: {str(error).strip().splitlines()[-1]}"
        fix = "install libaio-dev, g++ and ninja on every node (ninja on PATH), or use `offload_param: cpu`"
        raise InputError(what, where="train.deepspeed.offload_param", fix=fix) from error


def _extensions_folder() -> str:
    from torch.utils import cpp_extension

    module: Any = cpp_extension
    return str(Path(module._get_build_directory(_OPERATORS[0], verbose=False)).parent)


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Let one process at a time build the operators, in a folder of extensions.

    torch marks a build in progress with a file named ``lock``, for whose end others wait. After a build that was
    killed they would wait for ever.
    """
    with (folder / "ttmoe.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for name in _OPERATORS:
            if not any((folder / name).glob("*.so")):
                _log.warning("compiling DeepSpeed's operator %s: minutes, once on this machine", name)
            (folder / name / "lock").unlink(missing_ok=True)
        yield
