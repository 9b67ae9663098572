"""The router: a calibrated linear map from frozen features to experts, top 1, and beside it the surface of the text.

TT-LoRA MoE (arXiv 2504.21190), section 3.2. The map is trained (kind ``linear``, the paper's), the nearest mean of the
tasks' features (``centroid``; the semantic prior of T-REX, arXiv 2404.08985, with tasks as clusters), or a weighted sum
of both (``blend``). The scores of the surface (``ttmoe.surface``), if the router has one, are added to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ttmoe.atomic_write import write_atomically
from ttmoe.errors import InputError
from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec
from ttmoe.surface import Ngrams, Surface

ROUTER_MANIFEST, ROUTER_WEIGHTS = "router.json", "router.safetensors"
_EMBEDDING = "surface.embedding.weight"  # saved in fp16: half the bytes, and no other route in 10,000 rows
LEAST_SHARE = 0.01
_RETRAIN = "run `ttmoe run` again to train the router"


@dataclass(frozen=True)
class Routes:
    """The routing decision of each row of a batch.

    Attributes:
        names: The chosen expert of each row.
        probabilities: The calibrated probability that the chosen expert, or one of its group, is the right one, 0 to 1.
        familiar: False where the row resembles none of the library's tasks.
        shares: For each row the experts that answer it, with weights that add up to 1: the chosen expert, and those of
            its group that have at least ``LEAST_SHARE`` of its probability.
    """

    names: list[str]
    probabilities: list[float]
    familiar: list[bool]
    shares: list[dict[str, float]]


class Router(nn.Module):
    """A linear map from features (rows, width) to scores (rows, experts), plus the scores of the texts' surface.

    Features are standardised by the mean and the deviation of the training rows. Their scores are divided by
    ``temperature``; it and the scale of the surface's output calibrate the softmax of the sum.

    Args:
        tasks: Names of the experts, in the order of the scores.
        width: Width of the features.
        features: The hidden states that the features are made of.
        noise: Standard deviation of Gaussian noise that is added to the scores in training mode only.
        groups: Experts that answer together, such as those of one task in several data sets. A row goes to the group
            with the highest probability; an expert without a group is one of its own.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor

    def __init__(self, tasks: Sequence[str], width: int, features: FeatureSpec, noise: float = 0.0,
                 groups: Sequence[Sequence[str]] = ()) -> None:  # fmt: skip
        super().__init__()
        self.tasks, self.features, self.noise = tuple(tasks), features, noise
        self.groups = tuple(tuple(group) for group in groups)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("temperature", torch.ones(()))
        self.gate = nn.Linear(width, len(self.tasks))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.surface: Surface | None = None
        self.familiarity: Familiarity | None = None

    def standardise(self, features: Tensor) -> Tensor:
        """Return features (rows, width) with the training rows' mean subtracted, divided by their deviation, fp32."""
        return (features.float() - self.mean) / self.deviation

    def forward(self, features: Tensor, surface: Tensor | None = None) -> Tensor:
        """Compute the scores of experts.

        Args:
            features: Features (rows, width).
            surface: What ``read_surface`` returned for the same rows.

        Returns:
            Scores (rows, experts), fp32.
        """
        scores = self.gate(self.standardise(features)) / self.temperature
        if self.training and self.noise:
            scores = scores + self.noise * torch.randn_like(scores)
        if self.surface is None:
            return scores
        assert surface is not None, "a router with a surface needs the rows' texts"
        return scores + self.surface(surface)

    @torch.no_grad()
    def read_surface(self, texts: Sequence[str]) -> Tensor | None:
        """Return vectors (texts, width of the surface) of the texts of ``surface_text``; None without a surface."""
        return self.surface.embed(Ngrams.of(texts)) if self.surface else None

    @torch.no_grad()
    def route(self, features: Tensor, surface: Tensor | None = None) -> Routes:
        """Choose one expert for each row.

        A score that is not finite counts as the lowest. Without ``familiarity`` every row is familiar. The arguments
        are those of ``forward``.
        """
        scores = torch.nan_to_num(self(features, surface), nan=-1e9, posinf=1e9, neginf=-1e9)
        together, members = self._within_groups(scores)
        experts = members.argmax(-1)
        familiar = torch.ones_like(experts, dtype=torch.bool)
        if self.familiarity:
            highest = scores.gather(1, experts.unsqueeze(1)).squeeze(1)
            familiar = self.familiarity.is_familiar(self.standardise(features), experts, highest)
        names = [self.tasks[i] for i in experts.tolist()]
        shares = [{name: 1.0} for name in names]
        mixed = members.where(members >= LEAST_SHARE * members.amax(-1, keepdim=True), 0).double()
        mixed = mixed / mixed.sum(-1, keepdim=True)
        for row in (mixed.amax(-1) < 1).nonzero().flatten().tolist():
            shares[row] = {self.tasks[i]: float(mixed[row, i]) for i in mixed[row].nonzero().flatten().tolist()}
        return Routes(names, together.tolist(), familiar.tolist(), shares)

    def choose(self, scores: Tensor) -> Tensor:
        """Return the index of the expert that rows with these scores (rows, experts) are routed to, (rows,)."""
        return self._within_groups(scores)[1].argmax(-1)

    def _within_groups(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the group with the highest probability (a lone expert is a group).

        Returns:
            Its probability (rows,), and the share of each expert in it (rows, experts), 0 for those outside.
        """
        probabilities = scores.softmax(-1)
        if not self.groups:
            highest, experts = probabilities.max(-1)
            return highest, torch.zeros_like(probabilities).scatter(1, experts.unsqueeze(1), 1.0)
        number = {task: i for i, group in enumerate(self.groups) for task in group}
        numbers = [number.get(task, len(self.groups) + i) for i, task in enumerate(self.tasks)]
        group_of = torch.tensor(numbers, device=probabilities.device)
        sums = probabilities.new_zeros(len(probabilities), len(self.groups) + len(self.tasks))
        together, chosen = sums.index_add_(1, group_of, probabilities).max(-1)
        return together, probabilities.where(group_of == chosen.unsqueeze(1), 0) / together.unsqueeze(1)


def save_router(router: Router, folder: Path, base: dict, lock: dict[str, str], metrics: dict[str, float],
                kind: str = "linear") -> dict:  # fmt: skip
    """Write ``router.json`` and ``router.safetensors``.

    Args:
        router: The router.
        folder: The folder, created if missing.
        base: The identity of the base.
        lock: The spec hash of the expert of each task.
        metrics: Metrics to record in the manifest.
        kind: ``linear``, ``centroid`` or ``blend``.

    Returns:
        The manifest, the content of ``router.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.cpu().contiguous() for key, value in router.state_dict().items()}
    if _EMBEDDING in state:
        state[_EMBEDDING] = state[_EMBEDDING].half()
    data = save(state)
    manifest = {"kind": kind, "tasks": list(router.tasks), "groups": router.groups, "base": base, "lock": lock,
                "features": asdict(router.features), "metrics": metrics,
                "weights_digest": hashlib.sha256(data).hexdigest()}  # fmt: skip
    write_atomically(folder / ROUTER_WEIGHTS, data)
    write_atomically(folder / ROUTER_MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


def load_router(folder: Path) -> tuple[Router, dict]:
    """Load a router and its manifest from the files of ``save_router``.

    Returns:
        The router, in eval mode on the CPU, and the manifest.

    Raises:
        InputError: If a file is missing, altered or truncated, or if a weight is not finite or has another shape.
    """
    where = str(folder)
    try:
        manifest = json.loads((folder / ROUTER_MANIFEST).read_text())
        data = (folder / ROUTER_WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["weights_digest"]:
            raise InputError("the router's weights were altered or truncated", where=where, fix=_RETRAIN)
        weights = load(data)
        layers = manifest["features"]["layers"]
        features = FeatureSpec(layers if isinstance(layers, str) else tuple(layers), manifest["features"]["pooling"])
        groups = manifest.get("groups", ())  # routers of version 0.1 lack them
        router = Router(manifest["tasks"], weights["mean"].numel(), features, groups=groups)
        if "familiarity.basis" in weights:
            width, directions = weights["familiarity.basis"].shape
            router.familiarity = Familiarity(width, len(router.tasks), directions)
            weights.setdefault("familiarity.score_weight", torch.zeros(()))  # routers of version 0.1 lack it
        if _EMBEDDING in weights:
            router.surface = Surface(len(router.tasks), weights[_EMBEDDING].shape[1])
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise InputError(f"cannot read the router ({error})", where=where, fix=_RETRAIN) from error
    # Thresholds may be infinite: with -inf every row is familiar.
    valid = (~value.isnan() if name.endswith("thresholds") else value.isfinite() for name, value in weights.items())
    if not all(values.all() for values in valid):
        raise InputError("the router's weights are not finite", where=where, fix=_RETRAIN)
    try:
        router.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights do not match the router ({error})", where=where,
                         fix=f"{_RETRAIN} with this version of ttmoe") from error  # fmt: skip
    return router.eval(), manifest
