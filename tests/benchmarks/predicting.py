"""Row ``predicting``: answers to many short texts, against a bare loop over the base in batches sorted by length."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from tests.benchmarks import models
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.routed import WORDS, Frame, routed_model
from tests.benchmarks.table import Finding, at_most
from ttmoe.base import load_body, load_tokenizer
from ttmoe.features import FeatureSpec

ROWS, BATCH, EXPERTS = 20_000, 64, 16
TRUNK = 3  # of six layers


def run() -> Iterator[Finding]:
    base = models.minilm()
    frame = Frame(lambda: load_body(base), base, load_tokenizer(base), TRUNK)
    draw, words = random.Random(0), WORDS.split()
    texts = [" ".join(draw.choices(words, k=draw.randint(4, 24))) for _ in range(ROWS)]
    body = frame.body()

    @torch.inference_mode()
    def bare() -> None:
        rows = sorted(texts, key=len, reverse=True)
        for start in range(0, ROWS, BATCH):
            batch = frame.tokenizer(rows[start : start + BATCH], truncation=True, max_length=base.max_length,
                                    padding=True, return_tensors="pt")  # fmt: skip
            mask = batch["attention_mask"].unsqueeze(-1)
            ((body(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)).tolist()

    for first, goal in ((TRUNK, 1.2), (0, None)):
        features = FeatureSpec(tuple(range(first + 1)) if first else "all")
        model = routed_model(frame, first, features, EXPERTS)
        times = interleave({"ours": lambda model=model: model.predict(texts, BATCH, unknown=False), "bare": bare},
                           seconds=240, rounds=(3, 5), warm=0)  # fmt: skip
        where = f"experts above layer {first}, one pass" if first else "adapters on all layers, two passes"
        name = f"{ROWS:,} texts of 4 to 24 words, {base.id} in {base.dtype}, {EXPERTS} experts, {where}"
        ratio = times.ratio("ours", "bare")
        yield Finding(f"{name} ({times.spread('ours', 'bare')})", duration(times.median("ours")),
                      f"a bare loop over the base {duration(times.median('bare'))}",
                      *(at_most(ratio, goal) if goal else (f"{ratio:.2f}",)))  # fmt: skip
