"""The linear router of TT-LoRA MoE (arXiv 2504.21190, section 3.2): one linear map on frozen features, top 1."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ttmoe.errors import InputError
from ttmoe.features import FeatureSpec

MANIFEST, WEIGHTS = "router.json", "router.safetensors"


class LinearRouter(nn.Module):
    """Scores every expert from features (rows, width) -> (rows, experts).

    Features are standardised by the training rows' mean and deviation. Gaussian ``noise`` is added to the scores while
    training, never at inference, where the same input always meets the same expert.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, tasks: Sequence[str], width: int, features: FeatureSpec, noise: float = 0.0) -> None:
        super().__init__()
        self.tasks, self.features, self.noise = tuple(tasks), features, noise
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.gate = nn.Linear(width, len(self.tasks))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def fit_scale(self, features: Tensor) -> None:
        """Take mean and deviation from the training rows' features."""
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0).clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Scores (rows, experts)."""
        scores = self.gate((features - self.mean) / self.deviation)
        if self.training and self.noise:
            scores = scores + self.noise * torch.randn_like(scores)
        return scores

    @torch.no_grad()
    def route(self, features: Tensor) -> tuple[list[str], Tensor]:
        """The expert of each row, and the probabilities (rows, experts). Scores that are not finite count as lowest."""
        shares = torch.nan_to_num(self(features), nan=-1e9, posinf=1e9, neginf=-1e9).softmax(-1)
        return [self.tasks[i] for i in shares.argmax(-1).tolist()], shares


def save_router(
    router: LinearRouter, folder: Path, base: dict, lock: dict[str, str], metrics: dict[str, float]
) -> dict:
    """Write ``router.json`` and ``router.safetensors``. ``lock`` gives each task's expert spec hash."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({key: value.contiguous() for key, value in router.state_dict().items()})
    manifest = {"kind": "linear", "tasks": list(router.tasks), "features": asdict(router.features), "base": base,
                "lock": lock, "metrics": metrics, "weights_digest": hashlib.sha256(data).hexdigest()}  # fmt: skip
    (folder / WEIGHTS).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return manifest


def load_router(folder: Path) -> tuple[LinearRouter, dict]:
    """The router and its manifest. Raises InputError for files that are missing, altered or not finite."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["weights_digest"]:
            raise InputError(
                "the router's weights were altered or cut", where=str(folder), fix="run the library again"
            )
        weights = load(data)
        layers = manifest["features"]["layers"]
        features = FeatureSpec(
            layers if isinstance(layers, str) else tuple(layers), manifest["features"]["pooling"]
        )
        router = LinearRouter(manifest["tasks"], weights["mean"].numel(), features)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"no readable router ({error})", where=str(folder), fix="run the library again"
        ) from error
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise InputError(
            "the router's weights are not finite", where=str(folder), fix="run the library again"
        )
    router.load_state_dict(weights)
    return router.eval(), manifest
