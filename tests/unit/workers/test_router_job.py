"""The router job on separable features: which features it reads, its metrics, and which files it writes."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ttmoe.features import FeatureSpec
from ttmoe.router import load_router
from workers.cache.feature_store import write_features
from workers.data.prepared import PreparedTask
from workers.routing import router_job, router_training
from workers.routing.mixture import FEATURE_CHUNK
from workers.routing.router_job import ROUTER_RESULT_FILE, RouterJob, route_rows, run_router
from workers.training.settings import RouterSettings

LAYERS, WIDTH = 3, 8  # hidden states, and the size of each
ROWS = {"a": 300, "b": 120, "c": 60}  # training rows: tasks of different sizes
OTHERS = {"validation": 40, "test": 50, "stripped": 30}
QUICK = {"epochs": 5, "batch_size": 16, "lr": 1e-2, "unknown": 0.01, "surface": "none"}  # these rows have no texts


def states(place, count, draw, apart=1.5):
    """Pooled states of all layers, in both poolings; tasks lie apart in the last layer's mean alone."""
    made = 0.3 * torch.randn(count, LAYERS, 2, WIDTH, generator=draw)
    made[:, -1, 0, place] += apart
    return made.half()


def write_task(folder, place, sizes, draw, **places):
    """A task's features; ``places`` puts a split's rows where another task's are."""
    folder.mkdir(exist_ok=True)
    for split, count in sizes.items():
        write_features(folder, split, states(places.get(split, place), count, draw))
    return str(folder)


def data_of(task, train):
    sizes = {"train": train, "validation": 40, "test": 50}
    counts = {split: {"yes": count // 2, "no": count - count // 2} for split, count in sizes.items()}
    return PreparedTask(task, "text", ("yes", "no"), f"{task} data", counts, 0.5, 0, {}, Path("/nowhere"))


@pytest.fixture
def job(base, tmp_path):
    draw = torch.Generator().manual_seed(0)
    forms = {"stripped": 50, "loose": 40}
    files = {task: write_task(tmp_path / task, i, {"train": rows, "plain": rows, **OTHERS, **forms}, draw)
             for i, (task, rows) in enumerate(ROWS.items())}  # fmt: skip
    data, lock = {task: data_of(task, rows) for task, rows in ROWS.items()}, {task: f"hash-{task}" for task in ROWS}
    return RouterJob(base, FeatureSpec("last", "mean"), data, files, lock, RouterSettings(**QUICK), 0, "ef" * 32,
                     str(tmp_path / "router"))  # fmt: skip


def nothing(progress):
    pass


def unknown(job):
    """The share of the test rows that the router that a job has written calls unknown."""
    return 1 - float(route_rows(load_router(Path(job.folder))[0], job.load("test"))[2].float().mean())


@pytest.mark.parametrize("kind", ["linear", "centroid", "blend"])
def test_it_learns_what_can_be_told_apart_and_says_how_well(job, tmp_path, kind):
    reports = []
    result = run_router(replace(job, settings=RouterSettings(kind=kind, **QUICK)), threads=1, report=reports.append)
    metrics = result.metrics
    assert result.tasks == ("a", "b", "c")
    assert metrics["validation.routing_accuracy"] > 0.95
    assert metrics["stripped.routing_accuracy"] > 0.95
    assert metrics["parameters"] == 3 * WIDTH + 3
    assert metrics["seconds.training"] > 0
    assert [sum(row) for row in result.confusion] == [40, 40, 40]
    diagonal = sum(result.confusion[i][i] for i in range(3))
    assert diagonal / 120 == pytest.approx(metrics["validation.routing_accuracy"])
    assert unknown(job) < 0.1
    assert [r.step for r in reports if r.metrics] == ([] if kind == "centroid" else [1, 2, 3, 4, 5])
    assert (reports[-1].state, reports[-1].step, reports[-1].steps) == ("testing", 5, 5)

    router, manifest = load_router(tmp_path / "router")
    assert (manifest["kind"], manifest["lock"], manifest["base"]) == (kind, job.lock, job.base.record())
    assert manifest["metrics"] == metrics
    assert json.loads((tmp_path / "router" / ROUTER_RESULT_FILE).read_text())["confusion"] == result.confusion
    points = states(1, 50, torch.Generator().manual_seed(1))[:, -1, 0]
    routes = router.route(points)
    assert routes.names.count("b") > 45
    assert sum(routes.familiar) > 40
    assert not any(router.route(torch.full((3, WIDTH), 2.0)).familiar)


@pytest.mark.parametrize("kind", ["linear", "centroid", "blend"])
def test_d19_the_router_reports_from_the_start_and_within_an_epoch(job, monkeypatch, kind):
    """At size the first epoch takes longer than a job may be silent, and so does the loading of its features."""
    reports, load = [], router_job.load_features
    monkeypatch.setattr(router_job, "load_features", lambda *args: reports.append("load") or load(*args))
    settings = RouterSettings(**QUICK | {"kind": kind, "epochs": 2, "batch_size": 1})
    run_router(replace(job, settings=settings, chunk_rows=100), threads=1, report=reports.append)
    assert reports[0].state == "loading"
    assert "load, load" not in ", ".join(map(str, reports))  # a report between the tasks
    training = [report.step for report in reports if report != "load" and report.state == "training"]
    if kind != "centroid":
        assert training == sorted(training)
        assert training.count(1) > 480 / router_training.BEAT_STEPS  # the second epoch of 480 steps
        assert [r.step for r in reports if r != "load" and r.metrics] == [1, 2]
    before_training = [report for report in reports[: reports.index("load", 1)] if report != "load"]
    assert before_training
    last_load = len(reports) - reports[::-1].index("load")
    assert sum(report.state == "testing" for report in reports[last_load:]) > 1  # and while it is tested


def test_d19_the_router_takes_the_threads_that_it_is_given(job, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    run_router(job, threads=3, report=nothing)
    assert seen == [3]


def test_d18_the_rows_that_are_converted_at_a_time_change_nothing_but_rounding(job, tmp_path):
    few = replace(job, chunk_rows=7, folder=str(tmp_path / "few"))
    whole, small = (run_router(each, threads=1, report=nothing).metrics for each in (job, few))
    for key in ("validation.routing_accuracy", "stripped.routing_accuracy"):
        assert small[key] == pytest.approx(whole[key], abs=0.02)
    assert job.load("train").chunk_rows == FEATURE_CHUNK
    assert max(len(features) for (features,) in few.load("train").chunks()) == 7


def test_d18_only_one_tasks_features_at_a_time_are_in_memory_twice(job, monkeypatch):
    loaded, alive, load = [], [], router_job.load_features

    def watch(*args):
        alive.append(sum(each() is not None for each in loaded))
        rows = load(*args)
        loaded.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(router_job, "load_features", watch)
    assert len(job.load("train").labels) == sum(ROWS.values())
    assert alive == [0, 0, 0]


def test_the_router_reads_the_features_it_names(job):
    """Tasks lie apart in one layer's mean; a router that reads anything else is at a loss."""
    for spec, expected in ((FeatureSpec("last", "mean"), WIDTH), (FeatureSpec("all", "both"), 6 * WIDTH)):
        result = run_router(replace(job, features=spec), threads=1, report=nothing)
        assert result.metrics["parameters"] == 3 * expected + 3
        assert result.metrics["validation.routing_accuracy"] > 0.9
    for spec in (FeatureSpec("last", "last"), FeatureSpec((0, 1), "mean")):
        lost = run_router(replace(job, features=spec), threads=1, report=nothing)
        assert lost.metrics["validation.routing_accuracy"] < 0.5


def test_rows_of_the_confusion_are_the_true_tasks(job, tmp_path):
    """All validation rows of ``a`` lie where ``c`` was trained, and all stripped rows of ``b`` where ``a`` was."""
    draw = torch.Generator().manual_seed(3)
    write_task(tmp_path / "a", 0, {"validation": 40}, draw, validation=2)
    write_task(tmp_path / "b", 1, {"stripped": 50}, draw, stripped=0)
    result = run_router(job, threads=1, report=nothing)
    assert result.confusion[0][2] > 28
    assert result.confusion[2][0] < 5
    assert result.metrics["validation.routing_accuracy"] == pytest.approx(2 / 3, abs=0.05)
    assert result.metrics["stripped.routing_accuracy"] == pytest.approx(2 / 3, abs=0.05)


def test_rows_that_are_like_nothing_count_as_unknown(job, tmp_path):
    far = states(0, 50, torch.Generator().manual_seed(3))
    far[:, -1, 0, 7] = 5
    write_features(tmp_path / "a", "test", far)
    run_router(job, threads=1, report=nothing)
    assert unknown(job) == pytest.approx(1 / 3, abs=0.05)
    run_router(replace(job, settings=RouterSettings(**QUICK | {"unknown": 0})), threads=1, report=nothing)
    assert unknown(job) == 0


def test_rows_in_another_form_are_known_unless_form_counts(job, tmp_path):
    """Test rows of ``a`` lie beside its training rows, as its loose validation rows do."""
    beside = states(0, 50, torch.Generator().manual_seed(3))
    beside[:, -1, 0, 7] += 3
    for split, rows in {"test": beside, "loose": beside[:40]}.items():
        write_features(tmp_path / "a", split, rows)
    run_router(job, threads=1, report=nothing)
    assert unknown(job) < 0.1
    run_router(replace(job, settings=RouterSettings(**QUICK, loose=False)), threads=1, report=nothing)
    assert unknown(job) == pytest.approx(1 / 3, abs=0.05)


def test_the_same_seed_gives_the_same_router(job, tmp_path):
    digests = []
    for i, seed in enumerate((0, 0, 1)):
        torch.rand(5)
        folder = tmp_path / str(i)
        run_router(replace(job, seed=seed, folder=str(folder)), threads=1, report=nothing)
        digests.append(load_router(folder)[1]["weights_digest"])
    assert digests[0] == digests[1] != digests[2]


def test_fewer_rows_are_the_first_of_those_that_are_kept(job, monkeypatch):
    seen, honest = [], router_job.fit_router

    def fit(tasks, train, *rest):
        seen.append([len(rows) for rows in train.by_task()])
        return honest(tasks, train, *rest)

    monkeypatch.setattr(router_job, "fit_router", fit)
    whole = job.load("train").by_task()
    few = replace(job, settings=RouterSettings(**QUICK, rows_per_task=100))
    run_router(few, threads=1, report=nothing)
    assert seen == [[200, 200, 120]]  # with as many rows without formatting
    assert all(torch.equal(rows, all_[:100]) for rows, all_ in zip(few.load("train").by_task(), whole, strict=True))
    assert len(few.load("test").labels) == 150  # of the other splits all


def test_another_task_leaves_the_experts_alone(job, tmp_path, monkeypatch):
    """The job has no expert at hand: it opens no base, and writes nothing but the router's folder."""
    experts = tmp_path / "router" / "experts" / "a"
    experts.mkdir(parents=True)
    (experts / "expert.safetensors").write_bytes(b"as it was")
    for module in (
        "workers.training.engines.engine.load_body",
        "ttmoe.expert_files.load_expert",
        "ttmoe.expert_files.save_expert",
    ):
        monkeypatch.setattr(module, None)
    without = replace(job, **{key: {k: v for k, v in getattr(job, key).items() if k != "c"}
                              for key in ("data", "feature_folders", "lock")})  # fmt: skip
    run_router(without, threads=1, report=nothing)
    inputs = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors") if p.parent.name != "router"}
    before = load_router(tmp_path / "router")[0]
    run_router(job, threads=1, report=nothing)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors") if p.parent.name != "router"} == inputs
    after = load_router(tmp_path / "router")[0]
    assert (before.tasks, after.tasks) == (("a", "b"), ("a", "b", "c"))
    assert {p.name for p in (tmp_path / "router").iterdir()} == {
        "router.json",
        "router.safetensors",
        ROUTER_RESULT_FILE,
        "experts",
    }
