"""Rows ``step`` and ``memory``: one training step on SmolLM2 against PEFT LoRA and against the bare frozen base."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import models
from tests.benchmarks.machine import ROOT, peak_bytes
from tests.benchmarks.measuring import BUSY, duration, interleave
from tests.benchmarks.table import Finding, at_most
from ttmoe.base import choose_dtype
from ttmoe.encoding import pool

ROWS, TOKENS, CLASSES = 16, 64, 4


def run() -> Iterator[Finding]:
    settings = {(choose_dtype("auto"), 1): 60.0, ("float32", 1): 40.0}
    if not os.environ.get(BUSY):  # the CPU time of two threads counts their waiting for each other
        settings["float32", 2] = 60.0
    default = torch.get_num_threads()
    for (dtype, threads), seconds in settings.items():
        names = ["ours", "peft", "bare", *(["peft, adapters in bf16"] if dtype == "bfloat16" else [])]
        torch.set_num_threads(threads)
        try:
            times = interleave({name: SUBJECTS[name](dtype) for name in names}, seconds=seconds, rounds=(5, 40), warm=2)
        finally:
            torch.set_num_threads(default)
        what = (f"training step, SmolLM2, {ROWS} x {TOKENS} tokens, q and v of 30 layers, TT rank 8, {dtype}, "
                f"{threads} thread{'s' * (threads > 1)}")  # fmt: skip
        ours = duration(times.median("ours"))
        for peer, limit in (("peft", 1.0), ("peft, adapters in bf16", None), ("bare", 1.05)):
            if peer in names:
                ratio = times.ratio("ours", peer)
                text = {"peft": "PEFT LoRA 16", "bare": "bare base, forward and input-backward",
                        "peft, adapters in bf16": "PEFT LoRA 16, its weights in bf16 too"}[peer]  # fmt: skip
                cells = at_most(ratio, limit) if limit else (f"{ratio:.2f}", "", None)
                yield Finding(f"{what} ({times.spread('ours', peer)})", ours,
                              f"{text} {duration(times.median(peer))}", *cells)  # fmt: skip


def run_memory() -> Iterator[Finding]:
    """Each step in a process of its own that imports the same modules, so that only the step differs."""
    for dtype in dict.fromkeys([choose_dtype("auto"), "float32"]):
        peaks = {name: min(_peak(name, dtype) for _ in range(2)) for name in ("ours", "peft")}
        ratio = peaks["ours"] / peaks["peft"]
        texts = {name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()}
        yield Finding(f"peak memory of the process around that step, {dtype}", texts["ours"],
                      f"PEFT LoRA 16 {texts['peft']}", *at_most(ratio, 1.0))  # fmt: skip


def _peak(name: str, dtype: str) -> int:
    command = [sys.executable, "-m", "tests.benchmarks.step", name, dtype]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def ours(dtype: str) -> Callable[[], None]:
    """Our expert through the bank, as the training loop runs it."""
    bank = models.bank(dtype)
    expert = bank.add("expert", models.SPEC, CLASSES, torch.Generator().manual_seed(0))
    bank.train()
    return _step(lambda inputs: bank(inputs, "expert"), list(expert.parameters()))


def peft(dtype: str, fp32: bool = True) -> Callable[[], None]:
    """PEFT's LoRA with the same head on the last token."""
    model = models.peft_lora(models.body(dtype), ["expert"], fp32=fp32).train()
    head = nn.Linear(model.config.hidden_size, CLASSES)
    nn.init.zeros_(head.weight)
    trained = [p for p in model.parameters() if p.requires_grad]

    def scores(inputs: dict[str, Tensor]) -> Tensor:
        return head(pool(model(**inputs).last_hidden_state, inputs["attention_mask"], "last"))

    return _step(scores, [*trained, *head.parameters()])


def _step(scores: Callable[[dict[str, Tensor]], Tensor], trained: list[nn.Parameter]) -> Callable[[], None]:
    inputs, labels = models.batch(ROWS, TOKENS), torch.arange(ROWS) % CLASSES
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=True)

    def step() -> None:
        loss = F.cross_entropy(scores(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def bare(dtype: str) -> Callable[[], None]:
    """The limit: forward, and backward down to the embeddings, with nothing to train."""
    model = models.body(dtype).train()
    inputs, labels = models.batch(ROWS, TOKENS), torch.arange(ROWS) % CLASSES
    weight = torch.randn(CLASSES, model.config.hidden_size) / 24
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()

    def step() -> None:
        states = model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).last_hidden_state
        loss = F.cross_entropy(F.linear(pool(states, inputs["attention_mask"], "last"), weight), labels)
        torch.autograd.grad(loss, embedded)
        loss.item()

    return step


SUBJECTS: dict[str, Callable[[str], Callable[[], None]]] = {
    "ours": ours,
    "peft": peft,
    "bare": bare,
    "peft, adapters in bf16": lambda dtype: peft(dtype, fp32=False),
}


def _measure_memory(name: str, dtype: str) -> None:
    import peft  # noqa: F401  (in ours too)

    step = SUBJECTS[name](dtype)
    for _ in range(2):
        step()
    print(peak_bytes())


if __name__ == "__main__":
    _measure_memory(*sys.argv[1:])
