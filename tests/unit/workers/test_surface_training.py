"""A router that reads the surface of texts: trained by a job, on rows that features do not tell apart."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ttmoe.features import FeatureSpec
from ttmoe.router import load_router
from ttmoe.surface import Ngrams, surface_text
from workers.cache.feature_store import row_counts, write_features
from workers.data.examples import Example
from workers.data.prepared import PreparedTask
from workers.routing import router_job, surface_training
from workers.routing.router_job import RouterJob, run_router
from workers.routing.surface_training import embed_all, fit_surface
from workers.training.settings import RouterSettings

WORDS = ("alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "paper", "seven", "green")
# What tells the tasks' texts apart: case, a field's name, words.
FORMS = {
    "shouted": lambda words: " ".join(words).upper() + "!",
    "asked": lambda words: f"Question: {' '.join(words)}?",
    "foreign": lambda words: " ".join(word[::-1] for word in words),
}
SIZES = {"train": 300, "validation": 60, "test": 80}
SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 1e-2}


def rows_of(task, split):
    draw = random.Random(f"{task} {split}")
    return [Example((FORMS[task]([draw.choice(WORDS) for _ in range(6)]),), (), 0, "", "") for _ in range(SIZES[split])]


@pytest.fixture
def job(base, tmp_path, monkeypatch):
    """Features are noise, so the surface alone tells the tasks apart."""
    monkeypatch.setattr("workers.cache.feature_store.load_split", lambda data, split: rows_of(data.name, split))
    draw, data, files = torch.Generator().manual_seed(0), {}, {}
    for task in FORMS:
        counts = {split: {"yes": size} for split, size in SIZES.items()}
        data[task] = PreparedTask(task, "text", ("yes",), task, counts, 0.5, 0, {}, Path("/nowhere"))
        files[task] = str(tmp_path / task)
        (tmp_path / task).mkdir()
        for split, count in row_counts(data[task], 5000).items():
            write_features(tmp_path / task, split, torch.randn(count, 2, 2, 4, generator=draw).half())
    return RouterJob(base, FeatureSpec("all"), data, files, dict.fromkeys(FORMS, "hash"), RouterSettings(**SETTINGS), 0,
                     "ef" * 32, str(tmp_path / "router"))  # fmt: skip


def nothing(progress):
    pass


def test_the_surface_tells_apart_what_features_do_not(job):
    reports = []
    metrics = run_router(job, threads=1, report=reports.append).metrics
    alone = replace(job, settings=job.settings.model_copy(update={"surface": "none"}), folder=f"{job.folder}-alone")
    assert metrics["validation.routing_accuracy"] > 0.99
    assert run_router(alone, threads=1, report=nothing).metrics["validation.routing_accuracy"] < 0.5
    # Without their formatting, shouted and asked rows are the same, and the words of the third are not.
    assert metrics["stripped.routing_accuracy"] == pytest.approx(2 / 3, abs=0.15)
    router, _ = load_router(Path(job.folder))
    texts = [surface_text(rows_of(task, "test")[0].texts) for task in FORMS]
    routes = router.route(torch.zeros(3, 16), router.read_surface(texts))
    assert routes.names == list(FORMS)
    assert min(routes.probabilities) > 0.9
    assert load_router(Path(alone.folder))[0].surface is None
    before_training = [report.state for report in reports[: [r.state for r in reports].index("training")]]
    assert before_training.count("loading") > 3  # heartbeats while the surface is trained


def test_a_surface_that_helps_nothing_is_left_out(job, monkeypatch, tmp_path):
    """Every task's texts are drawn alike, and features tell the tasks apart."""
    monkeypatch.setattr("workers.cache.feature_store.load_split", lambda data, split: rows_of("asked", split))
    draw = torch.Generator().manual_seed(1)
    for place, task in enumerate(FORMS):
        for split, count in row_counts(job.data[task], 5000).items():
            states = 0.2 * torch.randn(count, 2, 2, 4, generator=draw)
            states[..., place] += 1
            write_features(tmp_path / task, split, states.half())
    result = run_router(job, threads=1, report=nothing)
    assert result.metrics["validation.routing_accuracy"] > 0.99
    router, _ = load_router(Path(job.folder))
    if router.surface:  # at most a trace of it
        assert float(router.surface.output.weight.detach().abs().max()) < 0.1


def test_the_vectors_of_all_texts_are_made_in_parts(monkeypatch):
    texts = Ngrams.of([surface_text(row.texts) for form in ("shouted", "foreign") for row in rows_of(form, "train")])
    labels, beats = torch.tensor([0, 1]).repeat_interleave(300), []
    torch.manual_seed(0)
    surface = fit_surface(2, texts, labels, lambda: beats.append(1))
    assert beats
    assert not surface.training
    monkeypatch.setattr(surface_training, "BATCH", 7)
    vectors = embed_all(surface, texts, lambda: beats.append(2))
    torch.testing.assert_close(vectors[297:302], surface.embed(texts[torch.arange(297, 302)]))
    assert (surface(vectors).argmax(-1) == labels).all()


def test_every_training_row_has_a_plain_copy(job, monkeypatch):
    seen = []
    monkeypatch.setattr(
        router_job, "fit_surface", lambda tasks, ngrams, labels, beat: seen.append((tasks, len(ngrams), labels))
    )
    job.fit_surface()
    tasks, texts, labels = seen[0]
    assert (tasks, texts) == (3, 2 * 3 * 300)
    assert torch.bincount(labels).tolist() == [600, 600, 600]
    none = replace(job, settings=job.settings.model_copy(update={"surface": "none"}))
    assert none.fit_surface() is None
    assert len(seen) == 1
