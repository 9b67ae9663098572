"""Row ``loading``: the n-th expert must load as fast as the first."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks import models
from tests.benchmarks.measuring import clock, duration
from tests.benchmarks.mixed import saved_adapters
from tests.benchmarks.table import Finding
from ttmoe.bank import Bank
from ttmoe.expert_files import load_expert, save_expert

COUNT, WINDOW, LIMIT = 256, 32, 0.010
PEER_COUNT = 48


def run() -> Iterator[Finding]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small gain nothing from more, and wait for them on a busy machine
    with tempfile.TemporaryDirectory(dir=models.temporary()) as folder:
        ours, peer = _ours(Path(folder)), _peft(Path(folder) / "peft")
    torch.set_num_threads(threads)
    first, last = (statistics.median(part) for part in (ours[:WINDOW], ours[-WINDOW:]))
    text = f"PEFT LoRA 16: first {duration(peer[0])}, {PEER_COUNT}th {duration(peer[-1])}"
    yield Finding(f"loading expert {COUNT - WINDOW + 1} to {COUNT} of {COUNT}, SmolLM2, median", duration(last),
                  text, "", f"≤ {duration(LIMIT)}", last <= LIMIT)  # fmt: skip
    yield Finding(f"the same against the first {WINDOW}", duration(last), f"ours, the first {duration(first)}",
                  f"{last / first:.2f}", "flat: ≤ 1.20", last / first <= 1.2)  # fmt: skip
    slow = sum(seconds > LIMIT for seconds in ours)
    high = sorted(ours)[round(0.95 * COUNT)]
    yield Finding(f"the same, all {COUNT}", f"95% within {duration(high)}, most {duration(max(ours))}",
                  f"{slow} took more than {duration(LIMIT)}", "")  # fmt: skip


def _ours(folder: Path) -> list[float]:
    bank = models.bank()
    base = models.smollm2().record()
    _save_all(bank, folder, base)
    bank, seconds = models.bank(), []
    for i in range(COUNT):
        began = clock()
        load_expert(bank, folder / f"e{i}", base["digest"])
        seconds.append(clock() - began)
    return seconds


def _save_all(bank: Bank, folder: Path, base: dict) -> None:
    for i in range(COUNT):
        expert = models.drawn_expert(bank, 4, seed=i)
        save_expert(expert, folder / f"e{i}", task=f"e{i}", kind="text", labels=("a", "b", "c", "d"), base=base,
                    spec_hash="", metrics={})  # fmt: skip


def _peft(folder: Path) -> list[float]:
    places = saved_adapters(folder, 1)
    model = models.peft_lora(models.body(), ["first"])
    seconds = []
    for i in range(PEER_COUNT):
        began = clock()
        model.load_adapter(places[0], f"e{i}")
        seconds.append(clock() - began)
    return seconds
