"""Rows ``routed``: how long the routed model takes for an answer, against one lone expert that was told the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.benchmarks import models
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.table import Finding, at_most
from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, load_tokenizer
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
    base = models.smollm2()
    frame = Frame(models.body, base, load_tokenizer(base), TRUNK)
    for mode in ("one pass", "two passes"):
        yield from compare(frame, mode, loaded=LOADED, batches=BATCHES, seconds=40)


@dataclass(frozen=True)
class Frame:
    """What the routed models stand on: a body for each of them, the base, its tokenizer, and the layers below."""

    body: Callable[[], nn.Module]
    base: Base
    tokenizer: Any
    trunk: int


def compare(
    frame: Frame, mode: str, *, loaded: Sequence[int], batches: Sequence[int], seconds: float
) -> Iterator[Finding]:
    """The lines of ``one pass`` (adapters above the trunk) or ``two passes`` (on all layers); ``seconds`` for each."""
    first, goal = (frame.trunk, 1.10) if mode == "one pass" else (0, 2.05)
    features = FeatureSpec(tuple(range(first + 1)) if first else "all")
    lone = _lone(frame, first)
    models_of = {count: routed_model(frame, first, features, count) for count in loaded}
    for size in batches:
        texts = [" ".join(f"{WORDS} {WORDS}".split()[i % 4 : 36 + i % 5]) for i in range(size)]
        subjects: dict[str, Callable[[], object]] = {"lone": lambda texts=texts: lone.answer(texts, "e0")}
        for count, model in models_of.items():
            subjects[str(count)] = lambda texts=texts, model=model: model.predict(texts)
        times = interleave(subjects, seconds=seconds, rounds=(5, 60))
        where = f"experts above layer {first}" if first else "adapters on all layers"
        name = f"routed model, {frame.base.id}, {where}, {mode}, batch {size}"
        yield Finding(f"{name}, {loaded[0]} loaded ({times.spread(str(loaded[0]), 'lone')})",
                      duration(times.median(str(loaded[0]))), f"a lone expert {duration(times.median('lone'))}",
                      *at_most(times.ratio(str(loaded[0]), "lone"), goal))  # fmt: skip
        for count in loaded[1:]:
            yield Finding(f"{name}, {count} loaded against {loaded[0]}", duration(times.median(str(count))),
                          duration(times.median(str(loaded[0]))),
                          *at_most(times.ratio(str(count), str(loaded[0])), 1.10))  # fmt: skip


def _lone(frame: Frame, first: int) -> TextBank:
    bank = TextBank(Bank(frame.body(), frame.base.pooling), frame.tokenizer, frame.base)
    bank.add("e0", LABELS, AdapterSpec(targets=("q", "v"), rank=8, first_layer=first))
    return bank


def routed_model(frame: Frame, first: int, features: FeatureSpec, count: int) -> RoutedModel:
    """A model whose gate sends rows to many experts; every weight has a value of its own, and all that runs, runs."""
    base, bank = frame.base, Bank(frame.body(), frame.base.pooling)
    tasks, draw = [f"e{i}" for i in range(count)], torch.Generator().manual_seed(0)
    spec = AdapterSpec(targets=("q", "v"), rank=8, first_layer=first)
    for i, task in enumerate(tasks):
        bank.attach(task, models.drawn_expert(bank, len(LABELS), seed=i, spec=spec))
    layers = bank.model.config.num_hidden_layers  # type: ignore[union-attr, arg-type]
    width = len(features.indexes(layers)) * len(features.poolings) * bank.width  # type: ignore[arg-type]
    router = Router(tasks, width, features)
    with torch.no_grad():
        router.gate.weight.normal_(generator=draw)
    router.familiarity = Familiarity(width, count, max_directions(width, count))
    for name in ("basis", "means", "whitenings", "centre", "around"):
        getattr(router.familiarity, name).normal_(std=0.05, generator=draw)
    manifests = {task: Manifest(task, "classify", LABELS, base.record(), spec, {}, 0, "", "") for task in tasks}
    return RoutedModel(bank, router, manifests, frame.tokenizer, base.max_length)
