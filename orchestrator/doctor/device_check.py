"""Check of what a machine computes on: torch, its GPUs, their driver and bfloat16."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from orchestrator.doctor.checks import Check, checked, faulty, passed
from orchestrator.plan.quantities import format_bytes
from workers.hardware import GPU_DEVICES, Hardware, probe_hardware

_DRIVER = Path("/sys/module/nvidia/version")
_SIZE = 256  # of the matrices that are multiplied


@checked("devices")
def check_devices() -> Check:
    """Compute a product on the CPU and on each GPU that torch finds, in the format that it is native in."""
    hardware, there = probe_hardware(), [path for path in GPU_DEVICES if os.path.exists(path)]
    import torch

    software = f"torch {version('torch')}"
    _compute("cpu", hardware.bf16)
    if hardware.gpus:
        for index, gpu in enumerate(hardware.gpus):
            _compute(f"cuda:{index}", gpu.bf16)
        driver = f", driver {_DRIVER.read_text().strip()}" if _DRIVER.exists() else ""
        return passed(f"{software}, CUDA {torch.version.cuda or torch.version.hip}{driver}: {describe_gpus(hardware)}")
    if there:
        built = torch.version.cuda or torch.version.hip
        reason = f"is built for CUDA {built}" if built else "is built for CPUs"
        fix = "install a build of torch that this driver runs, or set resources.gpus_per_expert to 0"
        return faulty(f"there is a GPU ({there[0]}), which torch cannot use; {software} {reason}", fix)
    return passed(f"{software}, no GPU; the CPU computes in {'bfloat16' if hardware.bf16 else 'float32'}")


def describe_gpus(hardware: Hardware) -> str:
    """Return the GPUs of a machine as text, such as ``2 x H100 (80.0 GB, bfloat16)``."""
    kinds: dict[str, int] = {}
    for gpu in hardware.gpus:
        kind = f"{gpu.name} ({format_bytes(gpu.memory)}, {'bfloat16' if gpu.bf16 else 'no bfloat16'})"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _compute(device: str, bf16: bool) -> None:
    """Multiply two matrices, and raise an error if the product is wrong: a driver may be there and not work."""
    import torch

    ones = torch.ones(_SIZE, _SIZE, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    if (total := (ones @ ones).float().sum().item()) != _SIZE**3:
        raise ArithmeticError(f"{device} computes a wrong product: {total:g} instead of {_SIZE**3}")
