"""Row ``layer``: two thin products against the core-by-core contraction of the papers, forward and backward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.benchmarks.contraction import contract
from tests.benchmarks.machine import ROOT
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.table import Finding
from ttmoe.layer import AdaptedLinear, Update, apply_update
from ttmoe.methods import TensorTrain
from ttmoe.shapes import TTShape
from ttmoe.tensor_train import cores_to_factors

SHAPES = {"Q": "16x8x4x4|4x4x8x16@5", "V": "16x16x4x2|2x16x16@5"}  # Llama-3.2-1B in the paper
TOKENS = (256, 1024, 4096, 8192)
LAYERS = 16


# glibc gives a large tensor back to the kernel as soon as it is freed, and the page faults of the next one cost more
# than the products. Kept memory, as jemalloc or tcmalloc keep it, lets the arithmetic be seen.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def run() -> Iterator[Finding]:
    """In a process of its own, for the memory setting is read at its start."""
    command = [sys.executable, "-m", "tests.benchmarks.layer"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **KEPT_MEMORY}, stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            yield Finding(**json.loads(line))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def measure_on(device: str, seconds: float) -> Iterator[Finding]:
    """The lines of one device; ``seconds`` for each."""
    for role, text in SHAPES.items():
        for tokens in TOKENS:
            yield _update(device, role, TTShape.parse(text), tokens, seconds)
        yield _whole(device, role, TTShape.parse(text), TOKENS[1], seconds)


def _update(device: str, role: str, shape: TTShape, tokens: int, seconds: float) -> Finding:
    """On a GPU, of all layers of Llama-3.2-1B, from CUDA graphs: the host's launches would hide what the GPU does."""
    layers = LAYERS if device == "cuda" else 1
    both = subjects(shape, tokens, device, layers=layers)
    kernels = {name: launches(run) for name, run in both.items()}
    times = interleave({name: replayed(run) for name, run in both.items()}, seconds=seconds, rounds=(9, 100), warm=2)
    faster, goal = times.ratio("contraction", "ours"), 4.0 if device == "cuda" else 1.5
    met, cells = round(faster, 1) >= goal, {name: duration(times.median(name)) for name in both}
    if device == "cuda":
        met = met and kernels["ours"] < kernels["contraction"]
        cells = {name: f"{cell}, {kernels[name]} kernels" for name, cell in cells.items()}
    of_layers = f" of {layers} layers" if layers > 1 else ""
    what = f"update {role} {shape}{of_layers}, forward and backward, {tokens} tokens, fp32, {device}"
    return Finding(f"{what} ({times.spread('contraction', 'ours')})", cells["ours"],
                   f"core by core {cells['contraction']}", f"{faster:.1f} times faster",
                   f"≥ {goal:g} times", met)  # fmt: skip


def _whole(device: str, role: str, shape: TTShape, tokens: int, seconds: float) -> Finding:
    both = subjects(shape, tokens, device, frozen=True)
    times = interleave({name: replayed(run) for name, run in both.items()}, seconds=seconds, rounds=(9, 100), warm=2)
    added = {name: times.ratio(name, "frozen") - 1 for name in ("ours", "contraction")}
    return Finding(f"layer {role} with its frozen map, {tokens} tokens, {device}: time over the frozen map alone",
                   f"{added['ours']:+.0%} ({duration(times.median('ours'))})",
                   f"core by core {added['contraction']:+.0%}; frozen map {duration(times.median('frozen'))}",
                   f"{times.ratio('contraction', 'ours'):.1f} times faster")  # fmt: skip


def subjects(
    shape: TTShape, tokens: int, device: str, *, frozen: bool = False, layers: int = 1
) -> dict[str, Callable[[], object]]:
    """Our update and the contraction, with gradients of x and of all cores; ``frozen``: each beside a frozen map.

    All ``layers`` read the same x.
    """
    draw = torch.Generator().manual_seed(0)
    initial = TensorTrain(shape, "paper").initial_cores(layers, draw)
    cores = [core.to(device).requires_grad_() for core in initial]
    inner = nn.Linear(shape.in_features, shape.out_features, bias=False, device=device).requires_grad_(False)
    layer = AdaptedLinear(inner)
    layer.parts["q"] = slice(0, shape.out_features)
    x = torch.randn(1, tokens, shape.in_features, generator=draw).to(device).requires_grad_()
    g = torch.randn(1, tokens, shape.out_features, generator=draw).to(device)

    def ours() -> list[Tensor]:
        a, b = cores_to_factors(cores, shape.split)
        updates = [Update(a.unsqueeze(0), b.unsqueeze(0), None) for a, b in zip(a.unbind(), b.unbind(), strict=True)]
        if not frozen:
            return [apply_update(x, update, training=True) for update in updates]
        layer.updates = {"q": updates[0]}
        return [layer(x)]

    def contraction() -> list[Tensor]:
        deltas = [
            contract(x, of_layer, shape.split) for of_layer in zip(*(core.unbind() for core in cores), strict=True)
        ]
        return [inner(x) + deltas[0]] if frozen else deltas

    def both_ways(forward: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), inputs, [g] * layers)

    runs = {"ours": both_ways(ours, [x, *cores]), "contraction": both_ways(contraction, [x, *cores])}
    return {**runs, "frozen": both_ways(lambda: [inner(x)], [x])} if frozen else runs


def replayed(run: Callable[[], object]) -> Callable[[], object]:
    """The same from a CUDA graph, where there is a GPU."""
    if not torch.cuda.is_available():
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def launches(run: Callable[[], object]) -> int:
    """Kernels that reach the GPU in one call; none without one."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    kinds = ("Memcpy", "Memset")
    return sum(e.device_type.name == "CUDA" and not e.name.startswith(kinds) for e in found.events())


if __name__ == "__main__":
    for finding in measure_on("cpu", seconds=4):
        print(json.dumps(vars(finding)), flush=True)
