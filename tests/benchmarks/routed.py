"""Rows ``routed``: how long the routed model takes for an answer, against one lone expert that was told the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tests.benchmarks import models
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.table import Finding, at_most
from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_tokenizer
from ttmoe.expert_files import Manifest
from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec
from ttmoe.routed import RoutedModel
from ttmoe.router import Router
from ttmoe.subspace import max_directions
from ttmoe.text_bank import TextBank

LOADED = (2, 16, 256)
BATCHES = (1, 32)
TRUNK = 20  # of thirty layers
LABELS = ("a", "b", "c", "d")
WORDS = "the river bank was closed on a cold morning while people waited for some bread and news of their town"


def run() -> Iterator[Finding]:
    below = FeatureSpec(tuple(range(TRUNK + 1)))
    for mode, first, features, goal in (("one pass", TRUNK, below, 1.10), ("two passes", 0, FeatureSpec("all"), 2.05)):
        lone = _lone(first)
        routed = {count: _routed(first, features, count) for count in LOADED}
        for size in BATCHES:
            texts = [" ".join(f"{WORDS} {WORDS}".split()[i % 4 : 36 + i % 5]) for i in range(size)]
            subjects: dict[str, Callable[[], object]] = {
                "lone": lambda texts=texts, lone=lone: lone.answer(texts, "e0")
            }
            for count, model in routed.items():
                subjects[str(count)] = lambda texts=texts, model=model: model.predict(texts)
            times = interleave(subjects, seconds=40, rounds=(5, 60))
            where = f"experts above layer {first}" if first else "adapters on all layers"
            name = f"routed model, SmolLM2, {where}, {mode}, batch {size}"
            yield Finding(f"{name}, {LOADED[0]} loaded ({times.spread(str(LOADED[0]), 'lone')})",
                          duration(times.median(str(LOADED[0]))), f"a lone expert {duration(times.median('lone'))}",
                          *at_most(times.ratio(str(LOADED[0]), "lone"), goal))  # fmt: skip
            for count in LOADED[1:]:
                yield Finding(f"{name}, {count} loaded against {LOADED[0]}", duration(times.median(str(count))),
                              duration(times.median(str(LOADED[0]))),
                              *at_most(times.ratio(str(count), str(LOADED[0])), 1.10))  # fmt: skip


def _lone(first: int) -> TextBank:
    base = models.smollm2()
    bank = TextBank(Bank(models.body(), base.pooling), load_tokenizer(base), base)
    bank.add("e0", LABELS, AdapterSpec(targets=("q", "v"), rank=8, first_layer=first))
    return bank


def _routed(first: int, features: FeatureSpec, count: int) -> RoutedModel:
    """A model whose gate sends rows to many experts; every weight has a value of its own, and all that runs, runs."""
    base = models.smollm2()
    bank = Bank(models.body(), base.pooling)
    tasks, draw = [f"e{i}" for i in range(count)], torch.Generator().manual_seed(0)
    spec = AdapterSpec(targets=("q", "v"), rank=8, first_layer=first)
    for i, task in enumerate(tasks):
        bank.attach(task, models.drawn_expert(bank, len(LABELS), seed=i, spec=spec))
    width = len(features.indexes(30)) * len(features.poolings) * bank.width
    router = Router(tasks, width, features)
    with torch.no_grad():
        router.gate.weight.normal_(generator=draw)
    router.familiarity = Familiarity(width, count, max_directions(width, count))
    for name in ("basis", "means", "whitenings", "centre", "around"):
        getattr(router.familiarity, name).normal_(std=0.05, generator=draw)
    manifests = {task: Manifest(task, "classify", LABELS, base.record(), spec, {}, 0, "", "") for task in tasks}
    return RoutedModel(bank, router, manifests, load_tokenizer(base), base.max_length)
