"""What this machine computes on: its GPUs, its number formats, and the versions that decide results."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("ttmoe", "torch", "transformers")
_BF16_CAPABILITY = 8  # NVIDIA GPUs before Ampere emulate bfloat16


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
    """Return the hardware of the machine on which this runs."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        bf16 = bool(torch.version.hip) or found.major >= _BF16_CAPABILITY
        gpus.append(Gpu(found.name, found.total_memory, bf16))
    cpu_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Hardware(tuple(gpus), cpu_bf16, {name: package_version(name) for name in PACKAGES})


def package_version(package: str) -> str:
    """Return the version of a package without the name of a build such as ``+cpu``; empty if it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
