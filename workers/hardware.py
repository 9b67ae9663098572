"""What this machine computes on: its GPUs, its number formats, and the versions that decide results."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("ttmoe", "torch", "transformers")
_BF16_CAPABILITY = 8  # NVIDIA GPUs before Ampere emulate bfloat16
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and NVIDIA in WSL
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: Name of the model.
        memory: Memory in bytes.
        bf16: Whether it computes in bfloat16 natively.
    """

    name: str
    memory: int
    bf16: bool


@dataclass(frozen=True)
class Hardware:
    """Hardware and software of one machine.

    Attributes:
        gpus: GPUs that torch can use.
        bf16: Whether the CPU computes in bfloat16 natively.
        versions: Version of each of ``PACKAGES``.
    """

    gpus: tuple[Gpu, ...]
    bf16: bool
    versions: dict[str, str]

    def computes_bf16(self, device: str) -> bool:
        """Return whether ``cpu``, or each of its GPUs, computes in bfloat16 natively."""
        return self.bf16 if device == "cpu" else all(gpu.bf16 for gpu in self.gpus)


def probe_hardware() -> Hardware:
    """Return the hardware of the machine on which this runs. Imports torch only where there may be a GPU."""
    gpus = _torch_gpus() if any(map(Path.exists, map(Path, GPU_DEVICES))) or not _CPU_INFO.exists() else ()
    return Hardware(gpus, _cpu_computes_bf16(), {name: package_version(name) for name in PACKAGES})


def _torch_gpus() -> tuple[Gpu, ...]:
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(
        Gpu(gpu.name, gpu.total_memory, bool(torch.version.hip) or gpu.major >= _BF16_CAPABILITY) for gpu in found
    )


def _cpu_computes_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16, which torch's kernels use."""
    try:
        flags = _CPU_INFO.read_text().split()
    except OSError:  # not Linux
        from ttmoe.base import choose_dtype

        return choose_dtype("auto") == "bfloat16"
    return "avx512_bf16" in flags or "amx_tile" in flags


def package_version(package: str) -> str:
    """Return the version of a package without the name of a build such as ``+cpu``; empty if it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
