"""Routers on clouds of points that are separable, and on some that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ttmoe.features import FeatureSpec
from ttmoe.router import Router
from ttmoe.surface import Surface
from workers.routing import mixture as mixture_module
from workers.routing import router_training
from workers.routing.mixture import Mixture
from workers.routing.routed_accuracy import RoutedAccuracy, overconfidence
from workers.routing.routed_accuracy import calibration_error as error_of_tests
from workers.routing.router_training import calibrate, fit_linear, fit_router
from workers.training.settings import RouterSettings as Settings

WIDTH, TASKS = 16, ("a", "b", "c")
KINDS = ("linear", "centroid", "blend")
SPEC = FeatureSpec("last", "mean")
QUICK = {"epochs": 5, "batch_size": 16, "lr": 1e-2, "unknown": 0.01}


def clouds(rows=(300, 120, 60), seed=0, apart=1.5, spread=0.3):
    """For each task points around a centre of its own, in half precision as features are kept."""
    draw = torch.Generator().manual_seed(seed)
    tasks = []
    for i, count in enumerate(rows):
        points = spread * torch.randn(count, WIDTH, generator=draw)
        points[:, i] += apart
        tasks.append(points.half())
    return Mixture.from_tasks(tasks, rows)


def calibration_error(probabilities, right, bins=15):
    """The calibration error of rows that stand in two tasks' tests."""
    rows = list(zip(probabilities.tolist(), right.tolist(), strict=True))
    tests = [RoutedAccuracy("", len(part), 0, 0, overconfidence=overconfidence(*zip(*part, strict=True), bins))
             for part in (rows[:1], rows[1:])]  # fmt: skip
    return error_of_tests(tests)


def nothing(progress):
    pass


def train_router(train, validation, seed=0, tasks=TASKS, **settings):
    torch.manual_seed(seed)
    return fit_router(tasks, train, validation, SPEC, Settings(**{**QUICK, **settings}), nothing)


def accuracy(router, rows):
    return float((rows.scores(router).argmax(-1) == rows.labels).float().mean())


def loss(router, rows):
    return float(F.cross_entropy(rows.scores(router), rows.labels))


def test_a_mixture_is_all_tasks_rows_and_can_be_taken_apart(monkeypatch):
    tasks = [torch.randn(n, 4) for n in (3, 1, 5)]
    mixture = Mixture.from_tasks(iter(tasks), (3, 1, 5))
    assert mixture.labels.tolist() == [0] * 3 + [1] + [2] * 5
    assert all(map(torch.equal, mixture.by_task(), tasks))
    monkeypatch.setattr(mixture_module, "FEATURE_CHUNK", 2)
    assert torch.equal(mixture.scores(lambda rows: rows * 2), torch.cat(tasks) * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_tells_apart_what_can_be_told_apart(kind):
    router = train_router(clouds(), clouds((40, 40, 40), 1), kind=kind)
    assert accuracy(router, clouds((50, 50, 50), 2)) > 0.95
    assert not router.training
    assert all(value.isfinite().all() for key, value in router.state_dict().items() if "thresholds" not in key)


def test_features_are_scaled_by_the_training_rows_alone(monkeypatch):
    train, validation = clouds(), clouds((40, 40, 40), 1, apart=9)
    rows = train.features.double()
    for chunk in (4096, 7):
        monkeypatch.setattr(mixture_module, "FEATURE_CHUNK", chunk)
        router = train_router(train, validation, kind="centroid")
        torch.testing.assert_close(router.mean, rows.mean(0).float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(router.deviation, rows.std(0, correction=0).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1234567, -0.9876543])
@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_that_never_changes_says_nothing_not_even_by_its_rounding(kind, value):
    """The last token of every text may be the same: then so is what the embeddings say of it. Kept in halves, read
    from the base in full."""
    train, validation = clouds(), clouds((40, 40, 40), 1)
    for rows in (train, validation):
        rows.features[:, 5] = value
    router = train_router(train, validation, kind=kind)
    assert accuracy(router, validation) > 0.95
    kept, read = clouds((50, 50, 50), 2).features, clouds((50, 50, 50), 2).features.float()
    kept[:, 5], read[:, 5] = value, value
    assert router.standardise(read)[:, 5].abs().max() <= 1
    assert router.route(read).names == router.route(kept).names
    assert sum(router.route(read).familiar) > 135


def test_the_nearest_mean_needs_no_training():
    reports = []
    settings = Settings(kind="centroid", unknown=0)
    router = fit_router(TASKS, clouds(), clouds((40, 40, 40), 1), SPEC, settings, reports.append)
    assert reports == []
    tasks = [router.standardise(rows) for rows in clouds().by_task()]
    near = torch.cdist(router.standardise(clouds((50, 50, 50), 2).features), torch.stack([t.mean(0) for t in tasks]))
    agree = router(clouds((50, 50, 50), 2).features).argmax(-1) == near.argmin(-1)  # clouds are round
    assert agree.float().mean() > 0.97


@pytest.mark.parametrize("unclear", [0.6, 1.2])
def test_a_blend_is_not_worse_than_its_parts_on_the_rows_it_was_fitted_to(unclear):
    train, validation = clouds(spread=unclear), clouds((40, 40, 40), 1, spread=unclear)
    parts = {kind: loss(train_router(train, validation, kind=kind), validation) for kind in KINDS}
    assert 0.01 < parts["blend"] <= min(parts["linear"], parts["centroid"]) + 1e-6


def test_a_blend_is_better_than_either_where_they_err_apart():
    """Fitted to few rows the trained map is far too sure of noise: some of the nearest mean helps."""
    train, validation = clouds((24, 24, 24), 5, 0.8, 0.7), clouds((200, 200, 200), 1, 0.8, 0.7)
    parts = {kind: loss(train_router(train, validation, kind=kind, epochs=60), validation) for kind in KINDS}
    assert parts["blend"] <= min(parts["linear"], parts["centroid"]) + 1e-6
    assert parts["blend"] < max(parts["linear"], parts["centroid"]) - 1e-3


def test_a_blend_of_what_validation_says_is_one_part_is_that_part():
    """Where training rows lie about all labels, the trained map is worth nothing and its weight goes to nothing."""
    train, validation = clouds(), clouds((40, 40, 40), 1)
    router = train_router(train, validation, kind="centroid")
    trained = train_router(train, validation, kind="linear", lr=1e-12, epochs=1)
    assert loss(trained, validation) > 1
    blend = train_router(train, validation, kind="blend", lr=1e-12, epochs=1)
    assert loss(blend, validation) == pytest.approx(loss(router, validation), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 8.0, 300.0])
def test_calibration_recovers_a_known_temperature(temperature):
    """Labels drawn from the softmax of known scores; the router's are so many times larger."""
    draw = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(40_000, 3, generator=draw)
    labels = torch.multinomial(scores.softmax(-1), 1, generator=draw).squeeze(1)
    router = Router(TASKS, 3, SPEC)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(3) * temperature)
    router.temperature.fill_(5.0)  # what stood there before does not matter
    rows = Mixture(scores, labels)
    calibrate(router, rows)
    assert float(router.temperature) == pytest.approx(temperature, rel=0.03)
    shares, chosen = rows.scores(router).softmax(-1).max(-1)
    assert calibration_error(shares, chosen == labels) < 0.015
    before = router.temperature.clone()
    calibrate(router, rows)
    torch.testing.assert_close(router.temperature, before, rtol=1e-3, atol=0)


@pytest.mark.parametrize("minimum", [-4.2, 0.0, 1.2345678, 11.9])
def test_a_known_minimum_is_found(minimum):
    def loss(x):
        return torch.tensor(x - minimum, dtype=torch.double).cosh()

    assert router_training._minimise(loss, -5, 12) == pytest.approx(minimum, abs=1e-6)


@pytest.mark.parametrize(("correct", "temperature"), [(60, 1.0), (75, 8.0), (95, 0.3)])
def test_the_temperature_of_two_tasks_has_a_closed_form(correct, temperature):
    """Rows with one difference of scores: softmax of it divided by the temperature must be the accuracy."""
    accuracy = torch.tensor(correct / 100, dtype=torch.double)
    scores = torch.tensor([temperature * float(accuracy.logit()), 0.0]).repeat(100, 1)
    router = Router(("a", "b"), 2, SPEC)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(2))
    calibrate(router, Mixture(scores, (torch.arange(100) >= correct).long()))
    assert float(router.temperature) == pytest.approx(temperature, rel=1e-3)  # the loss is computed in float32


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_calibrated_and_choices_stay(kind):
    train, validation = clouds(spread=1.2), clouds((400, 400, 400), 1, spread=1.2)
    router = train_router(train, validation, kind=kind, epochs=60)
    best = float(router.temperature)
    at_best = loss(router, validation)
    for factor in (0.8, 0.95, 1.05, 1.25):
        router.temperature.fill_(best * factor)
        assert loss(router, validation) > at_best
    router.temperature.fill_(best)
    fresh = clouds((600, 600, 600), 2, spread=1.2)
    shares, chosen = fresh.scores(router).softmax(-1).max(-1)
    assert calibration_error(shares, chosen == fresh.labels) < 0.06


def test_calibration_error_on_numbers_made_by_hand():
    right = torch.tensor([True, False])
    assert calibration_error(torch.tensor([1.0, 1.0]), right) == pytest.approx(0.5)
    assert calibration_error(torch.tensor([0.5, 0.5]), right) == 0
    assert calibration_error(torch.tensor([1.0, 0.0]), right) == 0
    # One bin of two rows that is 0.1 off, one of a single row that is 0.4 off.
    shares = torch.tensor([0.61, 0.59, 0.4])
    assert calibration_error(shares, torch.tensor([True, False, False]), bins=2) == pytest.approx((2 * 0.1 + 0.4) / 3)
    # In one bin for all, what is too sure and what is not sure enough make up for one another.
    assert calibration_error(shares, torch.tensor([True, False, True]), bins=1) == pytest.approx(2 / 3 - 1.6 / 3)


def test_every_task_has_the_same_weight_whatever_its_size():
    """Where tasks cannot be told apart, the largest must not win by its number of rows."""
    points = torch.randn(420, 2, generator=torch.Generator().manual_seed(0))
    mixture = Mixture(points, torch.tensor([0] * 400 + [1] * 20))
    router = Router(("large", "small"), 2, SPEC)
    torch.manual_seed(0)
    fit_linear(router, mixture, mixture, Settings(epochs=30, lr=3e-2, batch_size=64), nothing)
    bias = router.gate.bias.detach()
    assert abs(bias[0] - bias[1]) < 1  # without weights: log 20, which is 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_large_task_does_not_win_what_could_be_either(kind):
    rows = torch.randn(660, WIDTH, generator=torch.Generator().manual_seed(3)).half()
    validation = torch.randn(80, WIDTH, generator=torch.Generator().manual_seed(4)).half()
    mixtures = [
        Mixture.from_tasks([part[:count], part[count:]], [count, len(part) - count])
        for part, count in ((rows, 600), (validation, 40))
    ]
    router = train_router(*mixtures, tasks=("large", "small"), kind=kind, unknown=0)
    fresh = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(5))
    assert 0.3 < (router(fresh).argmax(-1) == 0).float().mean() < 0.7


def test_the_best_epoch_is_kept_and_ties_go_to_the_lower_loss():
    """Validation says the opposite of training: never right, and the longer the worse. The first epoch is best."""
    points = torch.tensor([[1.0], [-1.0]]).repeat(50, 1)
    labels = torch.tensor([0, 1]).repeat(50)
    router, seen = Router(("x", "y"), 1, SPEC), []

    def listen(progress):
        assert progress.metrics["validation.accuracy"] == 0
        seen.append(router.gate.weight.detach().clone())

    settings = Settings(epochs=4, lr=1e-2, batch_size=10)
    assert fit_linear(router, Mixture(points, labels), Mixture(points, 1 - labels), settings, listen) == 0
    assert torch.equal(router.gate.weight, seen[0])
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize("kind", ["linear", "blend"])
def test_the_same_seed_gives_the_same_router_and_another_another(kind):
    train, validation = clouds(spread=0.9), clouds((40, 40, 40), 1, spread=0.9)
    first, again, other = (train_router(train, validation, seed, kind=kind).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["gate.weight"], other["gate.weight"])


def test_the_nearest_mean_is_the_same_whatever_the_seed():
    train, validation = clouds(), clouds((40, 40, 40), 1)
    first, other = (train_router(train, validation, seed, kind="centroid").state_dict() for seed in (0, 1))
    assert all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_unknown_where_none_may_be(kind):
    router = train_router(clouds(), clouds((40, 40, 40), 1), kind=kind, unknown=0)
    assert router.familiarity is None
    assert all(router.route(torch.randn(50, WIDTH) * 1000).familiar)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_the_share_of_validation_rows_that_is_asked_for_is_unknown(kind, share):
    validation = clouds((400, 400, 400), 1)
    router = train_router(clouds(), validation, kind=kind, unknown=share)
    known = torch.tensor(router.route(validation.features).familiar)
    assert 1 - known.float().mean() == pytest.approx(share, abs=4e-3)
    for task in range(3):
        own = known[validation.labels == task]
        assert 1 - own.float().mean() == pytest.approx(share, abs=0.02)
    far = torch.zeros(WIDTH).index_fill(0, torch.tensor([9]), 5.0)  # where no task ever was
    assert not any(router.route(far.repeat(3, 1) + 0.1 * torch.randn(3, WIDTH)).familiar)


def test_loose_rows_lower_their_own_tasks_threshold_alone():
    """Points beside a's centre: they go to a, and are less familiar than its own."""
    train, validation = clouds(), clouds((40, 40, 40), 1)
    beside = clouds((40, 1, 1), 2, spread=0.15).features[:40]
    beside[:, 9] += 3

    def thresholds(labels=None):
        torch.manual_seed(0)
        loose = None if labels is None else Mixture(beside, torch.full((40,), labels))
        router = fit_router(TASKS, train, validation, SPEC, Settings(**QUICK), nothing, loose)
        assert set(router.route(beside).names) == {"a"}
        return router.familiarity.thresholds

    plain, lowered = thresholds(), thresholds(labels=0)
    assert lowered[0] < plain[0]
    assert torch.equal(lowered[1:], plain[1:])
    assert torch.equal(thresholds(labels=1), plain)  # rows of b that go astray say nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2])
def test_tasks_of_hardly_any_rows_are_no_error(kind, rows):
    router = train_router(clouds((rows, rows, rows)), clouds((2, 2, 2), 1), kind=kind)
    assert router(clouds((5, 5, 5), 2).features).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_library_of_one_task(kind):
    router = train_router(clouds((30,)), clouds((10,), 1), tasks=("only",), kind=kind)
    routes = router.route(clouds((10,), 2).features)
    assert (set(routes.names), set(routes.probabilities)) == ({"only"}, {1.0})


def test_the_share_of_unknown_rows_holds_with_groups():
    """Tasks that overlap: the best expert of the best group is often not the one with the highest score."""
    train, validation = clouds((300, 300, 300), spread=1.0), clouds((200, 200, 200), 1, spread=1.0)
    for groups in ([], [["b", "c"]]):
        router = train_router(train, validation, groups=groups, unknown=0.05)
        routes = router.route(validation.features)
        assert 1 - sum(routes.familiar) / 600 == pytest.approx(0.05, abs=0.01)
        assert router.choose(validation.scores(router)).tolist() == [TASKS.index(name) for name in routes.names]
    assert router.groups == (("b", "c"),)
    assert routes.names != [TASKS[i] for i in validation.scores(router).argmax(-1).tolist()]


def test_the_surface_is_averaged_with_the_best_weight_and_calibrated():
    """No other weight and temperature on a grid is better, and neither part alone."""
    validation = clouds((200, 200, 200), 1, spread=1.0)
    torch.manual_seed(3)
    surface = Surface(3, 4).requires_grad_(False)
    surface.output.weight.copy_(6 * torch.eye(3, 4))
    vectors = torch.nn.functional.one_hot(validation.labels, 4) + 0.8 * torch.randn(600, 4)
    rows = replace(validation, surface=vectors)
    torch.manual_seed(0)
    settings = Settings(**QUICK | {"unknown": 0})
    router = fit_router(TASKS, clouds(spread=1.0), rows, SPEC, settings, nothing, surface=surface)
    assert router.surface is not surface
    found = float(F.cross_entropy(rows.scores(router), rows.labels))
    features, read = router.gate(router.standardise(rows.features)).detach(), surface(vectors)
    for weight in torch.linspace(0, 1, 11):
        for temperature in (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
            mixed = features.lerp(read, float(weight)) / temperature
            assert found <= float(F.cross_entropy(mixed, rows.labels)) + 1e-3
    router.surface = None
    assert found < float(F.cross_entropy(replace(rows, surface=None).scores(router), rows.labels)) - 0.05
