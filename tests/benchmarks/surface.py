"""Row ``surface``: what reading the surface of texts costs a router, against one pass of MiniLM over the same texts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks.library import BASE, DATA
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.models import CACHE
from tests.benchmarks.table import Finding, at_most
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import collate, encode_inputs, pad_id_of
from ttmoe.features import FeatureSpec
from ttmoe.router import ROUTER_WEIGHTS, Router, save_router
from ttmoe.surface import Surface
from workers.base.base_sources import resolve_base

BATCH = 32
TEXTS = {"trec": "short questions", "ag_news": "news", "imdb": "long reviews, cut at 128 tokens"}
COUNTS = (4, 17, 1000)
SHARE, BYTES = 0.05, 64 * 10**6  # goals


def run() -> Iterator[Finding]:
    folder = Path(os.environ.get(DATA, ""))
    if not os.environ.get(DATA):
        yield Finding("the surface of texts", "not run", f"set {DATA} to the tasks' folder", "")
        return
    base = resolve_base(**BASE, cache=CACHE)
    model, tokenizer = load_body(base), load_tokenizer(base)
    for task, what in TEXTS.items():
        lines = (folder / task / "test.jsonl").read_text().splitlines()[:BATCH]
        texts = [json.loads(line)["text"] for line in lines]
        items = encode_inputs(tokenizer, texts, base.max_length)
        inputs = collate([item.whole for item in items], pad_id_of(tokenizer))
        characters = sum(map(len, texts)) / BATCH
        for count in COUNTS:
            router = _router(count)

            def read(router: Router = router, texts: list[str] = texts) -> None:
                surface = router.read_surface(texts)
                assert router.surface is not None
                assert surface is not None
                router.surface(surface)

            with torch.inference_mode():
                times = interleave({"surface": read, "pass": lambda inputs=inputs: model(**inputs)}, seconds=6, warm=3)
            yield Finding(
                f"surface of {BATCH} texts of {characters:.0f} characters ({what}), {count:,} tasks",
                duration(times.median("surface")),
                f"one pass over {tuple(inputs['input_ids'].shape)} tokens {duration(times.median('pass'))}",
                *at_most(times.ratio("surface", "pass"), SHARE),
            )
    with tempfile.TemporaryDirectory() as scratch:
        for count in COUNTS:
            with_surface, without = (
                _bytes(router, Path(scratch)) for router in (_router(count), _router(count, bare=True))
            )
            size = with_surface - without
            yield Finding(f"bytes of the surface in a router's file, {count:,} tasks", f"{size / 1e6:.2f} MB", "",
                          "", f"≤ {BYTES / 1e6:g} MB", size <= BYTES)  # fmt: skip


def _router(count: int, *, bare: bool = False) -> Router:
    router = Router([f"task{i}" for i in range(count)], 384, FeatureSpec("last", "mean"))
    router.surface = None if bare else Surface(count)
    return router.eval()


def _bytes(router: Router, folder: Path) -> int:
    save_router(router, folder, {}, {}, {})
    return (folder / ROUTER_WEIGHTS).stat().st_size
