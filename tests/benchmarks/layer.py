"""Row ``layer``: two thin products against the core-by-core contraction of the papers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.table import Finding
from ttmoe.layer import AdaptedLinear, Update
from ttmoe.methods import TensorTrain
from ttmoe.shapes import TTShape
from ttmoe.tensor_train import contract, factors

SHAPES = {"Q": "16x8x4x4|4x4x8x16@5", "V": "16x16x4x2|2x16x16@5"}  # Llama-3.2-1B in the paper
TOKENS = (256, 1024, 4096, 8192)


def run() -> Iterator[Finding]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for role, text in SHAPES.items():
            for tokens in TOKENS:
                yield _finding(device, role, TTShape.parse(text), tokens)
    if "cuda" not in devices:
        yield Finding("the same on a GPU, with launches counted", "not run", "no GPU here", "", "≥ 4 times faster")


def _finding(device: str, role: str, shape: TTShape, tokens: int) -> Finding:
    ours, theirs = subjects(shape, tokens, device)
    times = interleave({"ours": ours, "theirs": theirs}, seconds=4, rounds=(7, 60), warm=2)
    faster, goal = 1 / times.ratio("ours", "theirs"), 4.0 if device == "cuda" else 1.5
    met, cells = faster >= goal, [duration(times.median(name)) for name in ("ours", "theirs")]
    if device == "cuda":
        launches = [_launches(ours), _launches(theirs)]
        met = met and launches[0] < launches[1]
        cells = [f"{cell}, {count} launches" for cell, count in zip(cells, launches, strict=True)]
    what = f"layer {role} {shape} with its frozen map, forward and backward, {tokens} tokens, fp32, {device}"
    return Finding(what, cells[0], f"core by core {cells[1]}", f"{faster:.1f} times faster", f"≥ {goal:g} times", met)


def subjects(shape: TTShape, tokens: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Our layer and the contraction beside the same frozen map: gradients of x and of all cores."""
    draw = torch.Generator().manual_seed(0)
    cores = [core[0].to(device).requires_grad_() for core in TensorTrain(shape, "paper").initial(1, draw)]
    frozen = nn.Linear(shape.in_features, shape.out_features, bias=False, device=device).requires_grad_(False)
    layer = AdaptedLinear(frozen)
    layer.parts["q"] = slice(0, shape.out_features)
    x = torch.randn(1, tokens, shape.in_features, generator=draw).to(device).requires_grad_()
    g = torch.randn(1, tokens, shape.out_features, generator=draw).to(device)

    def backward(y: Tensor) -> None:
        torch.autograd.grad(y, [x, *cores], g)

    def ours() -> None:
        a, b = factors(cores, shape.split)
        layer.updates = {"q": Update(a.unsqueeze(0), b.mT.unsqueeze(0).mT, None)}
        backward(layer(x))

    return ours, lambda: backward(frozen(x) + contract(x, cores, shape.split))


def _launches(run: Callable[[], None]) -> int:
    """Kernels that reach the GPU in one pass."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        run()
        torch.cuda.synchronize()
    kinds = ("Memcpy", "Memset")
    return sum(e.device_type.name == "CUDA" and not e.name.startswith(kinds) for e in found.events())
