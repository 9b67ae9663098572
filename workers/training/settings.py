"""How an expert and a router are trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from workers.data.columns import STRICT_CONFIG, setting_error

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Pooling = Literal["auto", "mean", "last"]


# They change how much memory a training takes, not what it learns: no part of an expert's identity.
MEMORY_ONLY = frozenset({"micro_batch", "checkpointing"})
# They decide when a router is trained and what is measured beside it: no part of a router's identity.
ROUTER_UNHASHED = frozenset({"require", "compare_depths"})


class TrainSettings(BaseModel):
    """How an expert is trained."""

    model_config = STRICT_CONFIG
    steps: Count = Field(default=300, description="Optimiser steps, at most.")
    batch_size: Count = Field(default=32, description="Rows in a step.")
    batch_tokens: Count | None = Field(
        default=None, description="Padded tokens in a step instead: short rows come in larger batches."
    )
    micro_batch: Count | None = Field(
        default=None, description="Rows that go through the model at once; gradients add up over a step's rows."
    )
    checkpointing: bool = Field(default=False, description="Recompute layers in the backward pass to save memory.")
    lr: PositiveFloat = Field(default=5e-3, description="Learning rate of the adapter.")
    head_lr: PositiveFloat = Field(default=1e-3, description="Learning rate of the head.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="Decoupled weight decay.")
    warmup: Fraction = Field(default=0.06, description="The share of the steps in which the learning rate rises.")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="cosine", description="How it falls afterwards.")
    eval_every: Count = Field(default=50, description="Steps between evaluations on the validation split.")
    patience: int = Field(
        default=5, ge=0, description="Evaluations without improvement before stopping; 0 never stops."
    )
    clip: NonNegativeFloat = Field(default=1.0, description="The largest gradient norm; 0 leaves gradients alone.")
    label_smoothing: Fraction = Field(default=0.0, description="The share of a label spread over the other classes.")
    head_dropout: Fraction = Field(default=0.1, description="The share of the head's inputs dropped in training.")
    seed: int | None = Field(default=None, ge=0, description="Seed of this training; by default the config's seed.")


class RouterSettings(BaseModel):
    """The router: what it reads, how it is made, and when it says `unknown`."""

    model_config = STRICT_CONFIG
    kind: Literal["linear", "centroid", "blend"] = Field(
        default="linear",
        description="A trained linear map, the nearest mean of a task (no training), or a learned blend of both.",
    )
    layers: str | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default="all",
        description="Hidden states it reads: all, last, embeddings, trunk (up to its top: one pass), 0-4, or a list.",
    )
    pooling: Literal["both", "mean", "last"] = Field(
        default="both", description="Tokens to one vector: their mean, the last token, or both side by side."
    )
    rows_per_task: Count = Field(default=5000, description="Training rows taken from each task, at most.")
    epochs: Count = Field(default=20, description="Passes over these rows; each task is drawn equally often.")
    lr: PositiveFloat = Field(default=1e-3, description="Learning rate.")
    weight_decay: NonNegativeFloat = Field(default=0.1, description="Decoupled weight decay.")
    noise: NonNegativeFloat = Field(default=0.5, description="Deviation of the noise on the scores in training.")
    batch_size: Count = Field(default=256, description="Rows in a step.")
    unknown: Fraction = Field(
        default=0.01, description="The share of the tasks' own validation rows to answer `unknown`; 0 never does."
    )
    loose: bool = Field(
        default=True,
        description="Whether the tasks' rows in lower case and without punctuation are known too (19 of 20).",
    )
    require: Literal["all"] | Annotated[float, Field(gt=0, le=1)] | tuple[str, ...] = Field(
        default="all",
        description="Experts that must be there before it is trained: all, a share of them, or these tasks.",
    )

    compare_depths: Literal["auto"] | bool = Field(
        default="auto",
        description="Train routers of fewer layers as well and report their accuracy and time; auto while it is cheap.",
    )

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        named = isinstance(layers, str)
        ends = re.fullmatch(r"all|last|embeddings|trunk|(\d{1,4})-(\d{1,4})", str(layers))
        if not layers or (named and (not ends or (ends[1] and int(ends[1]) > int(ends[2])))):
            raise setting_error(
                f"{layers!r} names no hidden states", fix="write all, last, embeddings, trunk, 0-4 or [0, 4]"
            )
        return layers

    def hidden_states(self, trunk: int) -> str | tuple[int, ...]:
        """The layers as a router's features name them, above a trunk of ``trunk`` layers."""
        if not isinstance(self.layers, str) or self.layers in ("all", "last", "embeddings"):
            return self.layers
        first, last = (0, trunk) if self.layers == "trunk" else map(int, self.layers.split("-"))
        return tuple(range(first, last + 1))
