"""The router on features that can be told apart, and on some that cannot."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ttmoe.features import FeatureSpec
from ttmoe.router import LinearRouter, load_router
from workers import router_job
from workers.router_job import RESULT, RouterJob, fit_router, run_router
from workers.settings import Router

WIDTH = 16
ROWS = {"a": 300, "b": 120, "c": 60}  # training rows: tasks of different sizes


def features(task, draw, apart=1.5):
    """Clouds of points around a centre for each task."""
    centre = torch.zeros(WIDTH)
    centre[list(ROWS).index(task)] = apart
    sizes = {"train": ROWS[task], "validation": 40, "test": 50}
    return {s: centre + 0.3 * torch.randn(n, WIDTH, generator=draw) for s, n in sizes.items()}


@pytest.fixture
def job(base, tmp_path):
    draw, files = torch.Generator().manual_seed(0), {}
    for task in ROWS:
        files[task] = str(tmp_path / f"{task}.safetensors")
        save_file(features(task, draw), files[task])
    lock = {task: f"hash-{task}" for task in ROWS}
    spec = FeatureSpec("last", "mean")
    return RouterJob(base, spec, files, lock, Router(epochs=5, batch_size=16), 0, "ef" * 32, str(tmp_path / "router"))


def nothing(progress):
    pass


def test_it_learns_what_can_be_told_apart(job, tmp_path):
    reports = []
    result = run_router(job, reports.append)
    assert result.tasks == ("a", "b", "c")
    assert result.metrics["test.routing_accuracy"] > 0.95
    assert result.metrics["validation.routing_accuracy"] > 0.95
    assert [sum(row) for row in result.confusion] == [50, 50, 50]
    diagonal = sum(result.confusion[i][i] for i in range(3))
    assert diagonal / 150 == pytest.approx(result.metrics["test.routing_accuracy"])
    assert [r.step for r in reports] == [1, 2, 3, 4, 5]

    router, manifest = load_router(tmp_path / "router")
    assert manifest["lock"] == job.lock
    assert manifest["base"] == job.base.identity()
    assert result.metrics["parameters"] == 3 * WIDTH + 3
    assert json.loads((tmp_path / "router" / RESULT).read_text())["confusion"] == result.confusion
    points = features("b", torch.Generator().manual_seed(1))["test"]
    assert router.route(points)[0].count("b") > 45


def test_rows_of_the_confusion_are_the_true_tasks(job, tmp_path):
    """All test rows of ``a`` lie where ``c`` was trained."""
    draw = torch.Generator().manual_seed(3)
    save_file({**features("a", draw), "test": features("c", draw)["test"]}, job.files["a"])
    confusion = run_router(job, nothing).confusion
    assert confusion[0][2] > 35
    assert confusion[2][0] < 5


def test_the_same_seed_gives_the_same_router(job, tmp_path):
    digests = []
    for i, seed in enumerate((0, 0, 1)):
        torch.rand(5)
        settings = job.settings.model_copy(update={"noise": 0.5})
        folder = tmp_path / str(i)
        run_router(replace(job, seed=seed, folder=str(folder), settings=settings), nothing)
        digests.append(load_router(folder)[1]["weights_digest"])
    assert digests[0] == digests[1] != digests[2]


def test_every_task_has_the_same_weight_whatever_its_size():
    """Where tasks cannot be told apart, the largest must not win by its number of rows."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(420, 2, generator=draw)
    labels = torch.tensor([0] * 400 + [1] * 20)
    router = LinearRouter(("large", "small"), 2, FeatureSpec())
    torch.manual_seed(0)
    fit_router(router, (points, labels), (points, labels), Router(epochs=30, lr=3e-2, batch_size=64), nothing)
    bias = router.gate.bias.detach()
    assert abs(bias[0] - bias[1]) < 1  # without weights: log 20, which is 3


def test_the_best_epoch_is_kept_and_ties_go_to_the_lower_loss():
    """Validation says the opposite of training: never right, and the longer the worse. The first epoch is best."""
    points = torch.tensor([[1.0], [-1.0]]).repeat(50, 1)
    labels = torch.tensor([0, 1]).repeat(50)
    router, seen = LinearRouter(("x", "y"), 1, FeatureSpec()), []

    def listen(progress):
        assert progress.metrics["validation.accuracy"] == 0
        seen.append(router.gate.weight.detach().clone())

    settings = Router(epochs=4, lr=1e-2, batch_size=10)
    assert fit_router(router, (points, labels), (points, 1 - labels), settings, listen) == 0
    assert torch.equal(router.gate.weight, seen[0])
    assert not torch.equal(seen[0], seen[-1])


def test_features_are_scaled_by_the_training_rows(job, monkeypatch):
    scaled, honest = [], router_job.LinearRouter.fit_scale
    monkeypatch.setattr(LinearRouter, "fit_scale", lambda self, rows: (scaled.append(len(rows)), honest(self, rows))[1])
    run_router(job, nothing)
    assert scaled == [sum(ROWS.values())]
