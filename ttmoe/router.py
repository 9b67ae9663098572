"""The router: one linear map on frozen features, top 1 (TT-LoRA MoE, arXiv 2504.21190, section 3.2), calibrated.

Three ways lead to the map: it is trained (``linear``, the paper's), it is the nearest mean of a task's features
(``centroid``; the semantic prior of T-REX, arXiv 2404.08985, with tasks for clusters), or a weighted sum of these two
(``blend``).
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

from ttmoe.errors import InputError
from ttmoe.expert_files import write_whole
from ttmoe.familiarity import Familiarity
from ttmoe.features import FeatureSpec

ROUTER_MANIFEST, ROUTER_WEIGHTS = "router.json", "router.safetensors"


@dataclass(frozen=True)
class Routes:
    """For each row the expert's name, the probability that it is the right one, and whether the row is ``known``."""

    names: list[str]
    shares: list[float]
    known: list[bool]


class Router(nn.Module):
    """Scores every expert from features (rows, width) -> (rows, experts).

    Features are standardised by the training rows' mean and deviation; scores are divided by the ``temperature`` that
    makes their softmax a probability. Gaussian ``noise`` is added to the scores while training, never at inference,
    where the same input always meets the same expert.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor

    def __init__(self, tasks: Sequence[str], width: int, features: FeatureSpec, noise: float = 0.0) -> None:
        super().__init__()
        self.tasks, self.features, self.noise = tuple(tasks), features, noise
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("temperature", torch.ones(()))
        self.gate = nn.Linear(width, len(self.tasks))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.familiarity: Familiarity | None = None

    def scaled(self, features: Tensor) -> Tensor:
        """Standardised features, fp32."""
        return (features.float() - self.mean) / self.deviation

    def forward(self, features: Tensor) -> Tensor:
        """Scores (rows, experts)."""
        scores = self.gate(self.scaled(features)) / self.temperature
        if self.training and self.noise:
            scores = scores + self.noise * torch.randn_like(scores)
        return scores

    @torch.no_grad()
    def route(self, features: Tensor) -> Routes:
        """The expert of each row. Scores that are not finite count as lowest."""
        shares, experts = torch.nan_to_num(self(features), nan=-1e9, posinf=1e9, neginf=-1e9).softmax(-1).max(-1)
        known = torch.ones_like(experts, dtype=torch.bool)
        if self.familiarity:
            known = self.familiarity.knows(self.scaled(features), experts)
        return Routes([self.tasks[i] for i in experts.tolist()], shares.tolist(), known.tolist())


def save_router(router: Router, folder: Path, base: dict, lock: dict[str, str], metrics: dict[str, float],
                kind: str = "linear") -> dict:  # fmt: skip
    """Write ``router.json`` and ``router.safetensors``. ``lock`` gives each task's expert spec hash."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({key: value.cpu().contiguous() for key, value in router.state_dict().items()})
    manifest = {"kind": kind, "tasks": list(router.tasks), "features": asdict(router.features), "base": base,
                "lock": lock, "metrics": metrics, "weights_digest": hashlib.sha256(data).hexdigest()}  # fmt: skip
    write_whole(folder / ROUTER_WEIGHTS, data)
    write_whole(folder / ROUTER_MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


def load_router(folder: Path) -> tuple[Router, dict]:
    """The router and its manifest. Raises InputError for files that are missing, altered or not finite."""
    try:
        manifest = json.loads((folder / ROUTER_MANIFEST).read_text())
        data = (folder / ROUTER_WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["weights_digest"]:
            raise InputError("the router's weights were altered or cut", where=str(folder), fix="run the library again")
        weights = load(data)
        layers = manifest["features"]["layers"]
        features = FeatureSpec(layers if isinstance(layers, str) else tuple(layers), manifest["features"]["pooling"])
        router = Router(manifest["tasks"], weights["mean"].numel(), features)
        if "familiarity.basis" in weights:
            width, directions = weights["familiarity.basis"].shape
            router.familiarity = Familiarity(width, len(router.tasks), directions)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"no readable router ({error})", where=str(folder), fix="run the library again") from error
    # A threshold may be minus infinity: then everything is known.
    sound = (~value.isnan() if name.endswith("thresholds") else value.isfinite() for name, value in weights.items())
    if not all(each.all() for each in sound):
        raise InputError("the router's weights are not finite", where=str(folder), fix="run the library again")
    try:
        router.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the router's weights do not fit it ({error})", where=str(folder),
                         fix="run the library again with this version of ttmoe") from error  # fmt: skip
    return router.eval(), manifest
