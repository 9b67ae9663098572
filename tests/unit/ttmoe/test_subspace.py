"""Subspace and familiarity: the nearest mean is Fisher's discriminant, and distant rows are unfamiliar."""

from __future__ import annotations

import pytest
import torch

from ttmoe import subspace as module
from ttmoe.familiarity import Familiarity
from ttmoe.subspace import SHRINKAGE, Subspace, max_directions, whitening

WIDTH, TASKS = 12, 3


def clouds(rows=2000, seed=0, apart=3.0, tasks=TASKS):
    """Draw Gaussian clouds with one covariance, each about its own centre."""
    draw = torch.Generator().manual_seed(seed)
    form = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    centres = apart * torch.randn(tasks, WIDTH, generator=torch.Generator().manual_seed(98))
    return [centre + torch.randn(rows, WIDTH, generator=draw) @ form for centre in centres]


def same(rows):
    return rows


def of(tasks, scaled=same):
    return Subspace.fit(tasks, scaled)


def chosen(subspace, rows):
    weight, bias = subspace.nearest_mean()
    return (rows @ weight.T + bias).argmax(-1)


def familiarity_of(tasks, fraction=0.0):
    """Familiarity with thresholds below which ``fraction`` of the tasks' own rows fall."""
    labels = torch.arange(len(tasks)).repeat_interleave(len(tasks[0]))
    familiarity = Familiarity.from_subspace(of(tasks))
    familiarity.fit_thresholds(familiarity(torch.cat(tasks), labels), labels, fraction)
    return familiarity


def test_means_and_scatters_equal_those_of_the_rows():
    tasks = clouds()
    subspace = of(tasks)
    assert subspace.basis.shape == (WIDTH, WIDTH)
    torch.testing.assert_close(subspace.basis.T @ subspace.basis, torch.eye(WIDTH), atol=1e-4, rtol=0)
    low = [task @ subspace.basis for task in tasks]
    own = torch.stack([torch.cov(rows.T, correction=0) for rows in low])
    even = own.mean(0).diagonal().mean() * torch.eye(WIDTH)
    within = (1 - SHRINKAGE) * own.mean(0) + SHRINKAGE * even
    torch.testing.assert_close(subspace.means, torch.stack([rows.mean(0) for rows in low]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(subspace.within_scatter, within, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(subspace.scatters, (1 - SHRINKAGE) * own + SHRINKAGE * within, rtol=1e-3, atol=1e-3)
    every, total = torch.cat(low), torch.cov(torch.cat(low).T, correction=0)
    torch.testing.assert_close(subspace.centre, every.mean(0), rtol=1e-3, atol=1e-3)
    even = total.diagonal().mean() * torch.eye(WIDTH)
    torch.testing.assert_close(subspace.total_scatter, (1 - SHRINKAGE) * total + SHRINKAGE * even, rtol=1e-3, atol=2e-3)


def test_every_task_has_the_same_weight():
    large, small, third = clouds()
    few = of([large, small[:400], third])
    even = of([large, small[:400].repeat(5, 1), third])
    shared = few.basis @ few.basis.T  # the whole space: only the mean scatter and the centre could tell
    torch.testing.assert_close(shared, torch.eye(WIDTH), atol=1e-4, rtol=0)
    for name in ("within_scatter", "total_scatter"):
        some, other = (s.basis @ getattr(s, name) @ s.basis.T for s in (few, even))
        torch.testing.assert_close(some, other, rtol=1e-3, atol=1e-3)


def test_the_nearest_mean_is_fishers_discriminant():
    """Compare with the formula on the features, without a basis: equal priors, pooled covariance."""
    tasks, fresh = clouds(apart=1.2), torch.cat(clouds(300, 1, 1.2))
    mean = torch.stack([task.double().mean(0) for task in tasks])
    pooled = torch.stack([torch.cov(task.double().T, correction=0) for task in tasks]).mean(0)
    pooled = (1 - SHRINKAGE) * pooled + SHRINKAGE * pooled.diagonal().mean() * torch.eye(WIDTH)
    apart = fresh.double().unsqueeze(1) - mean
    distances = torch.einsum("rtw,wv,rtv->rt", apart, torch.linalg.inv(pooled), apart)
    found, labels = chosen(of(tasks), fresh), torch.arange(TASKS).repeat_interleave(300)
    clear = (distances.sort(-1).values.diff(dim=-1)[:, 0]) > 1e-2
    assert clear.float().mean() > 0.98
    assert torch.equal(found[clear], distances.argmin(-1)[clear])
    right = (found == labels).float().mean()
    euclidean = torch.cdist(fresh.double(), mean).argmin(-1)
    assert 0.8 < right < 1  # not so clear that anything would do
    assert right > (euclidean == labels).float().mean() + 0.05


def test_shifts_rotations_and_scales_change_nothing():
    """Classes and familiarity stay the same if all rows are transformed together."""
    tasks, fresh = clouds(), torch.cat(clouds(300, seed=1))
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)))[0]
    before, labels = chosen(of(tasks), fresh), torch.arange(TASKS).repeat_interleave(300)
    familiar = Familiarity.from_subspace(of(tasks))(fresh, labels)
    for change in (lambda rows: rows + 2, lambda rows: rows @ turn, lambda rows: rows * 0.5):
        changed = [change(task) for task in tasks]
        assert (chosen(of(changed), change(fresh)) == before).float().mean() > 0.995
        found = Familiarity.from_subspace(of(changed))(change(fresh), labels)
        torch.testing.assert_close(found, familiar, rtol=2e-2, atol=2e-2)  # whitening is kept in half precision
    order = [2, 0, 1]
    turned = chosen(of([tasks[i] for i in order]), fresh)
    assert (torch.tensor(order)[turned] == before).float().mean() > 0.995


def test_whitened_rows_have_unit_scatter():
    rows = clouds()[0]
    scatter = torch.cov(rows.T, correction=0)
    low = (rows - rows.mean(0)) @ whitening(scatter)
    torch.testing.assert_close(torch.cov(low.T, correction=0), torch.eye(WIDTH), rtol=0, atol=1e-2)
    several = whitening(torch.stack([scatter, 4 * scatter]))
    torch.testing.assert_close(several[1], several[0] / 2)


def test_chunks_give_the_same_result():
    tasks = clouds(500)
    whole, parts = Subspace.fit(tasks, same), Subspace.fit(tasks, same, chunk=33)
    for name in ("basis", "means", "scatters", "within_scatter", "centre", "total_scatter"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-3)


def test_features_are_standardised_first():
    tasks = clouds(400)
    halved = of(tasks, lambda rows: rows / 2)
    direct = of([task / 2 for task in tasks])
    assert all(torch.equal(getattr(halved, name), getattr(direct, name)) for name in ("basis", "means", "scatters"))


def test_familiarity_is_the_half_relative_distance():
    tasks = clouds()
    subspace, rows = of(tasks), torch.cat(clouds(5, seed=2))
    experts = torch.tensor([0, 1, 2] * 5)
    found = Familiarity.from_subspace(subspace)(rows, experts)
    for value, row, task in zip(found, rows @ subspace.basis, experts.tolist(), strict=True):
        own, common = row - subspace.means[task], row - subspace.centre
        inner = own @ torch.linalg.inv(subspace.scatters[task]) @ own / WIDTH
        outer = common @ torch.linalg.inv(subspace.total_scatter) @ common / WIDTH
        torch.testing.assert_close(value, 0.5 * outer - inner, rtol=2e-2, atol=2e-2)


def test_each_task_uses_its_own_scatter():
    """A row that differs in a direction in which only the other task varies is unfamiliar to this task."""
    draw = torch.Generator().manual_seed(0)
    flat, tall = torch.randn(2, 1000, WIDTH, generator=draw)
    flat[:, 0], tall[:, 0] = flat[:, 0] * 0.05, tall[:, 0] * 5
    flat[:, 1] += 8
    familiarity = familiarity_of([flat, tall], 0.02)
    row = torch.zeros(2, WIDTH)
    row[:, 0] = 4
    row[0, 1] = 8
    assert familiarity.is_familiar(row, torch.tensor([0, 1])).tolist() == [False, True]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_the_given_fraction_and_all_distant_rows_are_unfamiliar(share):
    tasks, labels = clouds(), torch.arange(TASKS).repeat_interleave(2000)
    familiarity = familiarity_of(tasks, share)
    own = familiarity.is_familiar(torch.cat(tasks), labels)
    for task in range(TASKS):
        assert 1 - own[labels == task].float().mean() == pytest.approx(share, abs=2e-3)
    fresh = familiarity.is_familiar(torch.cat(clouds(2000, seed=1)), labels)
    assert 1 - fresh.float().mean() == pytest.approx(share, abs=0.03)  # and about so many of others like them
    far = 40 * torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(3))
    for task in range(TASKS):
        assert not familiarity.is_familiar(far, torch.full((200,), task)).any()


def test_with_fraction_zero_every_row_is_familiar_and_each_task_has_its_threshold():
    tasks = clouds(200)
    familiarity = Familiarity.from_subspace(of(tasks))
    far, first = torch.full((1, WIDTH), 1e3), torch.tensor([0])
    assert familiarity.is_familiar(far, first).all()  # nothing is set yet
    familiarity.fit_thresholds(torch.tensor([1.0, 2.0, 3.0, -5.0]), torch.tensor([0, 0, 0, 2]), 0.5)
    assert familiarity.thresholds.tolist() == [2.0, -torch.inf, -5.0]  # no row was sent to the second
    familiarity.fit_thresholds(torch.tensor([1.0]), first, 0)
    assert familiarity.thresholds.tolist() == [-torch.inf] * 3


def test_thresholds_are_lowered_and_never_raised():
    tasks = clouds()
    familiarity = familiarity_of(tasks, 0.05)
    before = familiarity.thresholds.clone()
    scores = torch.cat([torch.linspace(-9, 0, 101) + before[0], torch.linspace(1, 9, 50) + before[1]])
    familiarity.lower_thresholds(scores, torch.tensor([0] * 101 + [1] * 50), 0.1)
    assert familiarity.thresholds[0] == pytest.approx(float(before[0]) - 8.1, abs=1e-3)
    assert torch.equal(familiarity.thresholds[1:], before[1:])  # all are above; of the third there are no rows


@pytest.mark.parametrize(
    ("width", "tasks", "most"), [(12, 3, 12), (5376, 17, 512), (5376, 1000, 252), (270_336, 17, 236)]
)
def test_wide_features_and_many_tasks_have_fewer_directions(width, tasks, most):
    assert max_directions(width, tasks) == most


def test_wide_features_use_a_smaller_sample(monkeypatch):
    seen = []

    def look(rows):
        seen.append(len(rows))
        return rows

    monkeypatch.setattr(module, "MAX_SAMPLE_VALUES", 40 * TASKS * WIDTH)
    of(clouds(), look)
    assert seen[:TASKS] == [40] * TASKS


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_unfamiliar_and_do_not_affect_others(bad):
    tasks = clouds(200)
    familiarity, rows, experts = familiarity_of(tasks, 0.05), tasks[1][:20].clone(), torch.ones(20, dtype=torch.long)
    before = familiarity.is_familiar(rows, experts)
    rows[3, 7] = bad
    found = familiarity.is_familiar(rows, experts)
    assert not found[3]
    before[3] = False
    assert torch.equal(found, before)
    assert before.any()


def test_the_global_random_state_is_neither_used_nor_changed():
    """With more features than directions, random projections determine the basis."""
    wide = [torch.randn(300, 900, generator=torch.Generator().manual_seed(i)) + i for i in range(2)]
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(of(wide))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0].basis.shape == (900, 150)
    for name in ("basis", "means", "scatters", "within_scatter", "centre", "total_scatter"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_per_task(rows):
    """With fewer rows than directions, down to one per task, scatters are zero or rank-deficient."""
    tasks = [torch.randn(rows, 40, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    every = torch.cat(tasks)
    scale = every.std(0)
    subspace = of(tasks, lambda part: (part - every.mean(0)) / scale)
    assert all(values.isfinite().all() for values in subspace.nearest_mean())
    familiarity = Familiarity.from_subspace(subspace)
    assert familiarity((every - every.mean(0)) / scale, torch.zeros(len(every), dtype=torch.long)).isfinite().all()


def test_identical_rows_in_a_task():
    tasks = [torch.full((50, 8), float(i)).roll(i, 1) for i in range(3)]
    tasks[1][:, 1] = 9.0
    familiarity = Familiarity.from_subspace(of(tasks))
    assert familiarity(torch.cat(tasks), torch.arange(3).repeat_interleave(50)).isfinite().all()


def test_rows_are_whitened_on_several_threads():
    """At the sizes of the quickstart, where a general inverse on two threads found wrong pivots."""
    rows = torch.randn(4, 400, 192, generator=torch.Generator().manual_seed(0))
    scatter, threads = rows.mT @ rows / 400, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inverse = whitening(scatter)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(inverse.mT @ scatter @ inverse, torch.eye(192).expand(4, -1, -1), atol=1e-4, rtol=0)
