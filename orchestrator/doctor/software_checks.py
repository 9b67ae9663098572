"""Checks of the software of a machine: Python, the packages that ttmoe requires, and DeepSpeed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestrator.doctor.checks import Check, checked, doubtful, faulty, passed, passed_over
from workers.hardware import GPU_DEVICES

_IMPORT_SECONDS = 120  # from a shared file system, a first import takes a minute


@checked("Python")
def check_python() -> Check:
    """Check the version of Python against the one that ttmoe requires."""
    own, required = platform.python_version(), distribution("ttmoe").metadata["Requires-Python"] or ""
    if own in SpecifierSet(required):
        return passed(f"{own} at {sys.executable}")
    return faulty(f"{own} at {sys.executable}; ttmoe requires {required}", "make an environment with another Python")


@checked("packages")
def check_packages() -> Check:
    """Check the versions of all packages that ttmoe requires."""
    requirements = list(_requirements())
    wrong = [found for each in requirements if (found := _shortfall(each))]
    if not wrong:
        return passed(f"ttmoe {version('ttmoe')}, and the {len(requirements)} packages that it requires")
    fix = "install them: python -m pip install " + " ".join(f"'{each}'" for each in requirements if _shortfall(each))
    return faulty(", ".join(wrong), fix)


def _requirements() -> Iterator[Requirement]:
    """Yield what ttmoe requires on this machine, without extras."""
    for text in distribution("ttmoe").requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            yield requirement


def _shortfall(requirement: Requirement) -> str:
    """Return how the installed package differs from what is required; empty if it does not."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(installed, prereleases=True):
        return ""
    return f"{requirement.name} {installed} is not {requirement.specifier}"


@checked("DeepSpeed")
def check_deepspeed() -> Check:
    """Check that DeepSpeed can be imported, and with a GPU, that there is what compiles its kernels."""
    try:
        installed = version("deepspeed")
    except PackageNotFoundError:
        return passed_over("not installed")
    gpu = any(map(os.path.exists, GPU_DEVICES))
    # A process of its own: the import changes settings of torch and prints.
    env = os.environ if gpu else {**os.environ, "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", "import deepspeed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, env=env, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return faulty(f"{installed} cannot be imported: {reason}", f"reinstall it: pip install deepspeed=={installed}")
    missing = _missing_compilers() if gpu else []
    if missing:
        fix = "needed only for experts on bases that do not fit one GPU: install the CUDA toolkit of torch's version"
        return doubtful(f"{installed}; it cannot compile kernels without {' and '.join(missing)}", fix)
    return passed(installed)


def _missing_compilers() -> list[str]:
    cuda = os.environ.get("CUDA_HOME")
    found = {
        "a C++ compiler": shutil.which("c++") or shutil.which("g++"),
        "ninja": shutil.which("ninja"),
        "nvcc (CUDA_HOME)": shutil.which("nvcc", path=f"{cuda}/bin" if cuda else None) or shutil.which("hipcc"),
    }
    return [name for name, path in found.items() if not path]
