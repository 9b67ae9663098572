"""Where the numbers come from."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def describe() -> list[str]:
    """The machine and the software, a line each."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return [
        f"{_cpu()}, {os.cpu_count()} cores, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {libraries}",
        f"{torch.get_num_threads()} threads in torch; other load when it began: {os.getloadavg()[0]:.1f}",
        f"code: {_code()}",
    ]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    flags = [flag for flag in known if flag in found.get("flags", "").split()]
    # Clouds hide the model's name; family and model still tell.
    place = f"family {found.get('cpu family')} model {found.get('model')}"
    return f"{found.get('model name', platform.processor())} ({place}; {', '.join(flags)})"


def _code() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "not a git checkout"


def peak_bytes() -> int:
    """The most memory this process held at once, since it became this program.

    Linux's ru_maxrss survives exec: a child of a large process starts with its parent's peak. VmHWM does not.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
