"""Training and calibration of routers on cached features."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec
from ttmoe.router import Router
from ttmoe.subspace import Subspace
from ttmoe.surface import Surface
from workers.progress import Progress, ProgressCallback
from workers.routing.mixture import Mixture
from workers.training.settings import RouterSettings

BEAT_STEPS = 10  # steps of an epoch between two heartbeats; on the widest features a step takes a second
LOOSE_UNKNOWN = 0.1  # maximum fraction of reformatted rows classified as unknown


def fit_router(tasks: Sequence[str], train: Mixture, validation: Mixture, features: FeatureSpec,
               settings: RouterSettings, report: ProgressCallback, loose: Mixture | None = None,
               surface: Surface | None = None) -> Router:  # fmt: skip
    """Train and calibrate a router.

    Args:
        tasks: Names of the tasks, in the order of the mixtures' labels.
        train: Training rows.
        validation: Validation rows, for the choice of the epoch, calibration and thresholds.
        features: What the features are.
        settings: Settings of the router.
        report: Receives the progress.
        loose: Reformatted validation rows. At most ``LOOSE_UNKNOWN`` of those that are routed correctly, or
            ``settings.unknown`` if it is larger, are classified as unknown.
        surface: A trained surface, whose vectors the validation and the loose rows have. A copy of it becomes part of
            the router if that lowers the cross-entropy of the validation rows.

    Returns:
        The router, in evaluation mode.
    """
    present = [[task for task in group if task in tasks] for group in settings.groups]  # an expert may have failed
    groups = [group for group in present if len(group) > 1]
    router = Router(tasks, train.features.shape[1], features, settings.noise, groups)
    fit_scale(router, train)
    needs_subspace = settings.kind != "linear" or settings.unknown
    subspace = _fit_subspace(router, train) if needs_subspace else None
    if settings.kind == "centroid":
        assert subspace
        _set_gate(router, *subspace.nearest_mean())
    else:
        fit_linear(router, train, validation, settings, report)
    calibrate(router, validation)
    if settings.kind == "blend":
        assert subspace
        _blend_with_nearest_mean(router, subspace, validation)
    if surface:
        _add_surface(router, surface, validation)
    if subspace and settings.unknown:
        router.familiarity = Familiarity.from_subspace(subspace)
        distances, scores, experts = _row_distances(router, router.familiarity, validation)
        router.familiarity.fit_score_weight(distances, scores, experts)
        familiarity = distances + router.familiarity.score_weight * scores
        router.familiarity.fit_thresholds(familiarity, experts, settings.unknown)
        if loose:
            distances, scores, experts = _row_distances(router, router.familiarity, loose)
            familiarity = distances + router.familiarity.score_weight * scores
            correct = experts == loose.labels  # a misrouted row says nothing about its own task's threshold
            fraction = max(settings.unknown, LOOSE_UNKNOWN)
            router.familiarity.lower_thresholds(familiarity[correct], experts[correct], fraction)
    return router.eval()


def fit_scale(router: Router, mixture: Mixture) -> None:
    """Set the mean and deviation by which the router standardises features.

    A feature that varies by less than the resolution of fp16 counts as constant and keeps a deviation of 1. Otherwise
    the router would respond to its rounding, which differs when features are computed by the base in full precision.
    """
    count, width = mixture.features.shape
    total, square = torch.zeros(width, dtype=torch.double), torch.zeros(width, dtype=torch.double)
    for features, *_ in mixture.chunks():
        rows = features.double()
        total += rows.sum(0)
        square += rows.square().sum(0)
    mean = total / count
    deviation = (square / count - mean.square()).clamp(min=0).sqrt()
    resolution = (mean.abs() * torch.finfo(torch.half).eps).clamp(min=1e-6)
    router.mean.copy_(mean)
    router.deviation.copy_(deviation.where(deviation > resolution, 1))


def fit_linear(
    router: Router, train: Mixture, validation: Mixture, settings: RouterSettings, report: ProgressCallback
) -> float:
    """Train the router's linear map by cross-entropy on the rows' tasks and keep the best epoch.

    Every task is sampled equally often. Epochs are compared by validation accuracy, then by validation loss.

    Returns:
        The best validation accuracy.
    """
    labels = train.labels
    weights = (1 / torch.bincount(labels, minlength=len(router.tasks)).double())[labels]
    optimizer = torch.optim.AdamW(router.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(labels) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best_quality, best_weights = (-1.0, 0.0), {}
    for epoch in range(1, settings.epochs + 1):
        router.train()
        order = torch.multinomial(weights, len(labels), replacement=True)
        for step, batch in enumerate(order.split(settings.batch_size)):
            if step % BEAT_STEPS == 0:
                train.beat()
            loss = F.cross_entropy(router(train.features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        router.eval()
        scores = validation.scores(router)
        accuracy = float((scores.argmax(-1) == validation.labels).float().mean())
        quality = (accuracy, -float(F.cross_entropy(scores, validation.labels)))
        if quality > best_quality:
            best_quality = quality
            best_weights = {key: value.clone() for key, value in router.gate.state_dict().items()}
        metrics = {"train.loss": loss.item(), "validation.accuracy": accuracy}
        report(Progress("training", epoch, settings.epochs, metrics))
    router.gate.load_state_dict(best_weights)
    return best_quality[0]


def calibrate(router: Router, validation: Mixture) -> None:
    """Set the temperature that minimises the cross-entropy on these rows (Guo et al., 2017, arXiv 1706.04599)."""
    scores = validation.scores(router.eval()) * router.temperature
    router.temperature.fill_(_best_temperature(scores, validation.labels))


def _row_distances(router: Router, familiarity: Familiarity, rows: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's relative distance and score for the expert it is routed to, and its index, (rows,) each."""
    scores = rows.scores(router)
    experts = router.choose(scores)
    chosen_scores = scores.gather(1, experts.unsqueeze(1)).squeeze(1)
    chosen = iter(experts.split(rows.chunk))
    distances = [familiarity.relative_distances(router.standardise(part), next(chosen)) for part, *_ in rows.chunks()]
    return torch.cat(distances), chosen_scores, experts


def _fit_subspace(router: Router, train: Mixture) -> Subspace:
    """Compute the subspace of the training rows, with heartbeats."""

    def standardise(rows: Tensor) -> Tensor:
        train.beat()
        return router.standardise(rows)

    return Subspace.fit(train.by_task(), standardise, train.chunk)


def _blend_with_nearest_mean(router: Router, subspace: Subspace, validation: Mixture) -> None:
    """Average the trained map and the nearest-mean map, with the weight that minimises the validation cross-entropy."""
    means = Router(router.tasks, router.mean.numel(), router.features)
    means.mean, means.deviation = router.mean, router.deviation
    _set_gate(means, *subspace.nearest_mean())
    calibrate(means, validation)
    trained, nearest = validation.scores(router), validation.scores(means)
    weight = _minimise(lambda w: F.cross_entropy(trained.lerp(nearest, w), validation.labels), 0, 1)
    with torch.no_grad():
        gates = [(r.gate.weight / r.temperature, r.gate.bias / r.temperature) for r in (router, means)]
        blended = [a.lerp(b, weight) for a, b in zip(*gates, strict=True)]
    router.temperature.fill_(1)
    _set_gate(router, *blended)
    calibrate(router, validation)


def _add_surface(router: Router, surface: Surface, validation: Mixture) -> None:
    """Average the router's and the surface's scores, with the weight that minimises the validation cross-entropy."""
    labels = validation.labels
    features = validation.scores(router)
    assert validation.surface is not None
    with torch.no_grad():
        read = surface(validation.surface)
    scale = 1 / _best_temperature(read, labels)
    weight = _minimise(lambda w: F.cross_entropy(features.lerp(scale * read, w), labels), 0, 1)
    temperature = _best_temperature(features.lerp(scale * read, weight), labels)
    both = features.lerp(scale * read, weight) / temperature
    if not F.cross_entropy(both, labels) < F.cross_entropy(features, labels):  # nor with a loss that is not a number
        return
    router.surface = copy.deepcopy(surface)
    router.surface.output.weight.data.mul_(scale * weight / temperature)
    router.surface.output.bias.data.mul_(scale * weight / temperature)
    router.temperature.mul_(temperature / (1 - weight))


def _best_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature by which the scores (rows, tasks) have the lowest cross-entropy."""
    return math.exp(_minimise(lambda log: F.cross_entropy(scores / math.exp(log), labels), -5, 12))


def _set_gate(router: Router, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        router.gate.weight.copy_(weight)
        router.gate.bias.copy_(bias)


def _minimise(loss: Callable[[float], Tensor], low: float, high: float, rounds: int = 40) -> float:
    """Return the minimiser of a unimodal loss between ``low`` and ``high``, by golden-section search.

    ``scipy.optimize.minimize_scalar`` evaluates other points. If all validation rows are routed correctly, the loss
    falls to the rounding of float32, and its temperatures differ by 7 to 21 %: that would need a new recipe number.
    """
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(rounds):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if float(loss(left)) < float(loss(right)):
            high = right
        else:
            low = left
    return (low + high) / 2
