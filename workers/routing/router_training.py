"""Routers from cached features: trained, the nearest mean, or a blend of these; then calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec
from ttmoe.router import Router
from ttmoe.subspace import Subspace
from workers.progress import Progress, ProgressCallback
from workers.training.settings import RouterSettings

FEATURE_CHUNK = 4096  # rows that are in full precision at a time
LOOSE_UNKNOWN = 0.05  # of the rows in another form, at most


@dataclass(frozen=True)
class Mixture:
    """Features (rows, width), in half precision, of all tasks' rows, and each row's task: ``labels`` (rows,)."""

    features: Tensor
    labels: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Tensor]) -> Mixture:
        """All tasks' rows, task after task."""
        labels = [torch.full((len(rows),), i) for i, rows in enumerate(tasks)]
        return cls(torch.cat(list(tasks)), torch.cat(labels))

    def by_task(self) -> list[Tensor]:
        """The rows of each task."""
        return list(self.features.split(torch.bincount(self.labels).tolist()))

    def scores(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``score`` makes of all rows."""
        with torch.no_grad():
            return torch.cat([score(part) for part in self.features.split(FEATURE_CHUNK)])


def fit_router(tasks: Sequence[str], train: Mixture, validation: Mixture, features: FeatureSpec,
                settings: RouterSettings, report: ProgressCallback, loose: Mixture | None = None) -> Router:  # fmt: skip
    """A router of the settings' kind for ``tasks`` from their training rows, calibrated on ``validation``.

    ``loose`` are rows in another form, of which most must be known to it too.
    """
    router = Router(tasks, train.features.shape[1], features, settings.noise)
    fit_scale(router, train)
    subspace = Subspace.of(train.by_task(), router.scaled) if settings.kind != "linear" or settings.unknown else None
    if settings.kind == "centroid":
        assert subspace
        _set_gate(router, *subspace.nearest_mean())
    else:
        fit_linear(router, train, validation, settings, report)
    calibrate(router, validation)
    if settings.kind == "blend":
        assert subspace
        _blend(router, subspace, validation)
    if subspace and settings.unknown:
        router.familiarity = Familiarity.of(subspace)
        router.familiarity.fit_thresholds(*_familiar(router, router.familiarity, validation), settings.unknown)
        if loose:
            familiar, experts = _familiar(router, router.familiarity, loose)
            own = experts == loose.labels  # of a row that goes astray its task's threshold says nothing
            router.familiarity.admit(familiar[own], experts[own], max(settings.unknown, LOOSE_UNKNOWN))
    return router.eval()


def fit_scale(router: Router, mixture: Mixture) -> None:
    """Take mean and deviation of the router's features from these rows.

    What half precision does not tell apart is one value, and such a feature stays as small as it varies: else it would
    answer to its rounding, which is another when the router reads the base itself.
    """
    count, width = mixture.features.shape
    total, square = torch.zeros(width, dtype=torch.double), torch.zeros(width, dtype=torch.double)
    for part in mixture.features.split(FEATURE_CHUNK):
        rows = part.double()
        total += rows.sum(0)
        square += rows.square().sum(0)
    mean = total / count
    deviation = (square / count - mean.square()).clamp(min=0).sqrt()
    least = (mean.abs() * torch.finfo(torch.half).eps).clamp(min=1e-6)
    router.mean.copy_(mean)
    router.deviation.copy_(deviation.where(deviation > least, 1))


def fit_linear(
    router: Router, train: Mixture, validation: Mixture, settings: RouterSettings, report: ProgressCallback
) -> float:
    """Supervised training on the rows' tasks, every task drawn equally often; keeps the best epoch.

    Returns the validation accuracy. Ties go to the lower validation loss.
    """
    labels = train.labels
    weights = (1 / torch.bincount(labels, minlength=len(router.tasks)).double())[labels]
    optimizer = torch.optim.AdamW(router.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(labels) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = (-1.0, 0.0), {}
    for epoch in range(1, settings.epochs + 1):
        router.train()
        for batch in torch.multinomial(weights, len(labels), replacement=True).split(settings.batch_size):
            loss = F.cross_entropy(router(train.features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        router.eval()
        scores = validation.scores(router)
        accuracy = float((scores.argmax(-1) == validation.labels).float().mean())
        quality = (accuracy, -float(F.cross_entropy(scores, validation.labels)))
        if quality > best:
            best, kept = quality, {key: value.clone() for key, value in router.gate.state_dict().items()}
        metrics = {"train.loss": loss.item(), "validation.accuracy": accuracy}
        report(Progress("training", epoch, settings.epochs, metrics))
    router.gate.load_state_dict(kept)
    return best[0]


def calibrate(router: Router, validation: Mixture) -> None:
    """Divide the scores by what makes their softmax most likely on these rows (Guo et al., 2017)."""
    scores = validation.scores(router.eval()) * router.temperature
    router.temperature.fill_(
        math.exp(_least(lambda log: F.cross_entropy(scores / math.exp(log), validation.labels), -5, 12))
    )


def calibration_error(shares: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error: of ``shares`` (rows,), the probabilities of what was chosen, against ``right``."""
    places = (shares * bins).long().clamp(max=bins - 1)
    gaps = [
        float((shares[places == i].mean() - right[places == i].float().mean()).abs() * (places == i).float().mean())
        for i in places.unique().tolist()
    ]
    return sum(gaps)


def _familiar(router: Router, familiarity: Familiarity, rows: Mixture) -> tuple[Tensor, Tensor]:
    """How familiar each row is with the expert that it is sent to, and this expert."""
    experts = rows.scores(router).argmax(-1)
    parts = zip(rows.features.split(FEATURE_CHUNK), experts.split(FEATURE_CHUNK), strict=True)
    return torch.cat([familiarity(router.scaled(part), chosen) for part, chosen in parts]), experts


def _blend(router: Router, subspace: Subspace, validation: Mixture) -> None:
    """Between the trained map and the nearest mean, both calibrated: the one weight that is likeliest on these rows."""
    means = Router(router.tasks, router.mean.numel(), router.features)
    means.mean, means.deviation = router.mean, router.deviation
    _set_gate(means, *subspace.nearest_mean())
    calibrate(means, validation)
    trained, nearest = validation.scores(router), validation.scores(means)
    weight = _least(lambda w: F.cross_entropy(trained.lerp(nearest, w), validation.labels), 0, 1)
    with torch.no_grad():
        gates = [(r.gate.weight / r.temperature, r.gate.bias / r.temperature) for r in (router, means)]
        blended = [own.lerp(other, weight) for own, other in zip(*gates, strict=True)]
    router.temperature.fill_(1)
    _set_gate(router, *blended)
    calibrate(router, validation)


def _set_gate(router: Router, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        router.gate.weight.copy_(weight)
        router.gate.bias.copy_(bias)


def _least(loss: Callable[[float], Tensor], low: float, high: float, rounds: int = 40) -> float:
    """Where a loss with one valley is least, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(rounds):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if float(loss(left)) < float(loss(right)):
            high = right
        else:
            low = left
    return (low + high) / 2
