"""Row ``router``: a router from features computed once, against training it the paper's way, to the best accuracy.

The paper's way (TT-LoRA MoE, arXiv 2504.21190, section 3.2) runs every training row through the base once in every
epoch; its loss compares the chosen expert with the row's own, so no expert has to run. Both sides train the same linear
map on the last hidden state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.library import BASE, DATA
from tests.benchmarks.measuring import QUICK, clock, duration
from tests.benchmarks.models import CACHE
from tests.benchmarks.routing import SIX, _input
from tests.benchmarks.table import Finding
from tests.reference_features import router_features
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Item, collate, encode_inputs, pad_id_of
from ttmoe.features import FeatureSpec
from ttmoe.router import Router
from workers.base.base_sources import resolve_base
from workers.routing.mixture import Mixture
from workers.routing.router_training import fit_router, fit_scale
from workers.training.settings import RouterSettings as Settings

ROWS, EPOCHS, BATCH = (20, 2, 32) if os.environ.get(QUICK) else (150, 20, 32)
OUR_EPOCHS = 3 * EPOCHS  # they cost next to nothing once the features are there
SPEC_OF_FEATURES = FeatureSpec("last", "mean")


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA):
        yield Finding("training the router of six tasks", "not run", f"set {DATA} to the tasks' folder", "")
        return
    torch.manual_seed(0)
    base = resolve_base(**BASE, cache=CACHE)
    bank, tokenizer = Bank(load_body(base), base.pooling).eval(), load_tokenizer(base)
    train, validation = (_rows(folder, split, tokenizer, base.max_length) for split in ("train", "validation"))
    labels = torch.arange(len(SIX)).repeat_interleave(ROWS)
    pad_id = pad_id_of(tokenizer)
    ours, our_accuracy = _ours(bank, train, validation, labels, pad_id)
    theirs, best, their_accuracy, seconds = _paper(bank, train, validation, labels, pad_id)
    name = f"router of six tasks, MiniLM, {len(train)} rows, linear on the last hidden state"
    yield Finding(f"{name}: time to the best validation accuracy", f"{duration(ours)} ({our_accuracy:.3f})",
                  f"a pass a row and epoch {duration(theirs)}: epoch {best} of {EPOCHS} ({their_accuracy:.3f})",
                  f"{theirs / ours:.1f} times faster")  # fmt: skip
    yield Finding(f"{name}: the same, all {EPOCHS} epochs of the other side", duration(ours), duration(seconds),
                  f"{seconds / ours:.1f} times faster")  # fmt: skip


def _ours(bank: Bank, train: list[Item], validation: list[Item], labels: Tensor, pad_id: int) -> tuple[float, float]:
    began = clock()
    parts = [Mixture(_features(bank, rows, pad_id).half(), labels[: len(rows)]) for rows in (train, validation)]
    settings = Settings(epochs=OUR_EPOCHS, batch_size=BATCH, unknown=0)
    router = fit_router(SIX, parts[0], parts[1], SPEC_OF_FEATURES, settings, lambda progress: None)
    seconds = clock() - began
    return seconds, float((parts[1].scores(router).argmax(-1) == parts[1].labels).float().mean())


def _features(bank: Bank, rows: list[Item], pad_id: int) -> Tensor:
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        inputs = collate([rows[i].whole for i in part], pad_id)
        found.update(zip(part, router_features(bank.model, inputs, SPEC_OF_FEATURES), strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def _paper(bank: Bank, train: list[Item], validation: list[Item], labels: Tensor,
           pad_id: int) -> tuple[float, int, float, float]:  # fmt: skip
    """Seconds to the best epoch, that epoch, its accuracy, and the seconds of all. Validating is not counted."""
    router = Router(SIX, bank.width, SPEC_OF_FEATURES, noise=Settings().noise)
    fit_scale(router, Mixture(_features(bank, train, pad_id), labels))
    held = Mixture(_features(bank, validation, pad_id), labels[: len(validation)])
    optimizer = torch.optim.AdamW(router.parameters(), lr=Settings().lr, weight_decay=Settings().weight_decay)
    seconds, best = 0.0, (0.0, 0, 0.0)
    for epoch in range(1, EPOCHS + 1):
        began = clock()
        router.train()
        for batch in torch.randperm(len(train)).split(BATCH):
            inputs = collate([train[i].whole for i in batch.tolist()], pad_id)
            scores = router(router_features(bank.model, inputs, SPEC_OF_FEATURES))
            optimizer.zero_grad()
            F.cross_entropy(scores, labels[batch]).backward()
            optimizer.step()
        seconds += clock() - began
        accuracy = float((held.scores(router.eval()).argmax(-1) == held.labels).float().mean())
        if accuracy > best[2]:
            best = (seconds, epoch, accuracy)
    return (*best, seconds)


def _rows(folder: Path, split: str, tokenizer: object, max_length: int) -> list[Item]:
    rows = [json.loads(line) for task in SIX
            for line in (folder / task / f"{split}.jsonl").read_text().splitlines()[:ROWS]]  # fmt: skip
    return encode_inputs(tokenizer, [_input(row) for row in rows], max_length)
