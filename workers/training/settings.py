"""The config sections `train` and `router`: how experts and the router are trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from workers.data.validation import (
    STRICT_CONFIG,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    setting_error,
)

Pooling = Literal["auto", "mean", "last"]

# These change only the memory of a training, not its result: they are not part of an expert's identity.
MEMORY_ONLY = frozenset({"micro_batch", "checkpointing", "engine", "deepspeed"})
# These decide when a router is trained and what is measured: they are not part of a router's identity.
ROUTER_UNHASHED = frozenset({"require", "compare_depths"})

EVALUATION_ROWS = 2000  # default of validation_rows
LEAST_STATES, MOST_STATES = 3, 8  # hidden states that a router reads if `router.layers` is auto
MOST_FEATURES = 24_576  # numbers of a row that it reads then, if there are enough states
ROUTER_ROWS = (500, 1000, 2000, 5000)  # training rows of each task that a router takes in turn


class ZeroSettings(BaseModel):
    """Settings of the engine ``deepspeed``: what ZeRO divides among processes, and what it keeps outside of the GPU.

    The names are those of DeepSpeed's own config.
    """

    model_config = STRICT_CONFIG
    stage: Literal[0, 1, 2, 3] = Field(
        default=3,
        description="What is divided: 1: the optimizer's state, 2: gradients too, 3: the base's weights too; "
        "0: nothing, as with ddp.",
    )
    offload_param: Literal["none", "cpu", "nvme"] = Field(
        default="none", description="Where a process keeps its part of the base: none: on its GPU. For stage 3."
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        default="none", description="Where a process keeps its part of the optimizer's state. From stage 1 on."
    )
    nvme_path: str | None = Field(default=None, description="Folder on a local disk, for `offload_param: nvme`.")
    param_persistence_threshold: NonNegativeInt = Field(
        default=100_000,
        description="Weights of fewer numbers, such as biases and norms, stay whole in every process. For stage 3.",
    )

    @model_validator(mode="after")
    def _check(self) -> ZeroSettings:
        if self.offload_param != "none" and self.stage < 3:
            what = f"stage {self.stage} does not divide the base, so it cannot be offloaded"
            raise setting_error(what, key=("offload_param",), fix="use `stage: 3`")
        if self.offload_optimizer != "none" and self.stage < 1:
            what = "stage 0 does not divide the optimizer's state, so it cannot be offloaded"
            raise setting_error(what, key=("offload_optimizer",), fix="use `stage: 1` or higher")
        if (self.offload_param == "nvme") != bool(self.nvme_path):
            raise setting_error("nvme_path and `offload_param: nvme` belong together", key=("nvme_path",),
                                fix="give both, or neither")  # fmt: skip
        return self


class TrainSettings(BaseModel):
    """Training settings of an expert."""

    model_config = STRICT_CONFIG
    steps: PositiveInt = Field(default=300, description="Maximum number of optimizer steps.")
    batch_size: PositiveInt = Field(default=32, description="Rows in one optimizer step.")
    batch_tokens: PositiveInt | None = Field(
        default=None, description="Maximum padded tokens of one step, in place of batch_size."
    )
    micro_batch: PositiveInt | Literal["auto"] | None = Field(
        default="auto",
        description="Rows in one forward and backward pass, accumulated over the step; null: all of them, auto: as "
        "many as fit in memory.",
    )
    checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description="Recompute activations in the backward pass: less memory, more time; auto: if memory is too small.",
    )
    engine: Literal["auto", "torch", "ddp", "deepspeed"] = Field(
        default="auto",
        description="torch: one process; ddp: several, each with the whole base and a share of every batch; deepspeed: "
        "several that divide the base among them. auto: the first of torch and deepspeed that fits in memory.",
    )
    deepspeed: ZeroSettings = Field(default_factory=ZeroSettings, description="Settings of the engine deepspeed.")
    lr: PositiveFloat = Field(default=5e-3, description="Learning rate of the adapter.")
    head_lr: PositiveFloat = Field(default=1e-3, description="Learning rate of the head.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="Decoupled weight decay (AdamW).")
    warmup: Fraction = Field(default=0.06, description="Share of the steps in which the learning rate rises linearly.")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="cosine", description="Decay after the warmup.")
    eval_every: PositiveInt = Field(default=50, description="Steps between evaluations on the validation split.")
    validation_rows: PositiveInt | None = Field(
        default=None,
        description="Maximum validation rows of an evaluation during training, by default 2000; the rows of a split "
        "are in random order. The final figure is measured on all rows.",
        json_schema_extra={"neutral": None},
    )
    patience: NonNegativeInt = Field(
        default=5, description="Stop after this many evaluations without a better result; 0: never."
    )
    clip: NonNegativeFloat = Field(default=1.0, description="Maximum gradient norm; 0 disables clipping.")
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing of the cross-entropy (as in torch).")
    head_dropout: Fraction = Field(default=0.1, description="Dropout rate of the head's inputs.")
    seed: Seed | None = Field(default=None, description="Random seed; defaults to the config's seed.")

    @property
    def rows_at_once(self) -> int | None:
        """Rows in one pass; None for all of them, as with an ``auto`` that was not resolved."""
        return None if self.micro_batch == "auto" else self.micro_batch

    @property
    def shards_base(self) -> bool:
        """Whether the processes that train an expert together hold a part of the base each."""
        return self.engine == "deepspeed" and self.deepspeed.stage == 3

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed; not with an ``auto`` that was not resolved."""
        return self.checkpointing is True

    def with_memory_of(self, other: TrainSettings, processes: int, tokens: int) -> TrainSettings:
        """Return these settings with ``auto`` in place of memory settings replaced by what another training has.

        Args:
            other: The other training.
            processes: Processes of the other training. In one process, as many rows pass at once as in each of them.
            tokens: Tokens of a row.
        """
        unresolved = {key: getattr(other, key) for key in MEMORY_ONLY if getattr(self, key) == "auto"}
        if processes > 1 and unresolved.get("micro_batch", 1) is None:
            rows = max(1, self.batch_tokens // tokens) if self.batch_tokens else self.batch_size
            unresolved["micro_batch"] = -(-rows // processes)
        return self.model_copy(update=unresolved)

    def batch_rows(self, rows: int, tokens: int) -> int:
        """Return the mean number of rows in a step on a split of so many ``rows`` and ``tokens``."""
        return self.batch_size if self.batch_tokens is None else max(1, self.batch_tokens * rows // tokens)

    def evaluation_rows(self, available: int) -> int:
        """Return how many of the ``available`` validation rows an evaluation during training uses."""
        return min(available, self.validation_rows or EVALUATION_ROWS)


ONE_PROCESS = TrainSettings(engine="torch")
"""Settings that name the engine of one process, for work that needs the base and is no training."""


class RouterSettings(BaseModel):
    """Settings of the router: its features, its training, and its detection of unknown inputs."""

    model_config = STRICT_CONFIG
    kind: Literal["linear", "centroid", "blend"] = Field(
        default="linear",
        description="linear: a trained linear map; centroid: the task with the nearest mean; blend: of both.",
    )
    layers: str | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default="auto",
        description="Hidden states to read (0: the embeddings): all, last, embeddings, trunk, 0-4, or a list. auto: up "
        "to eight, evenly spaced; of wide bases fewer.",
    )
    pooling: Literal["both", "mean", "last"] = Field(
        default="both", description="Pooling of token states: their mean, the last token, or both concatenated."
    )
    surface: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: read the characters of a text too, where validation rows gain from it; none: never.",
        json_schema_extra={"neutral": "none"},
    )
    rows_per_task: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Maximum number of training rows of each task. auto: 500, then 1000, 2000 and 5000 while the "
        "accuracy on validation rows rises by 0.2 points or more.",
    )
    epochs: PositiveInt = Field(default=8, description="Epochs; tasks are sampled with equal probability.")
    lr: PositiveFloat = Field(default=1e-3, description="Learning rate.")
    weight_decay: NonNegativeFloat = Field(default=0.1, description="Decoupled weight decay (AdamW).")
    noise: NonNegativeFloat = Field(
        default=0.5, description="Standard deviation of the noise added to the logits in training."
    )
    batch_size: PositiveInt = Field(default=256, description="Rows in one optimizer step.")
    unknown: Fraction = Field(
        default=0.05,
        description="Share of each task's validation rows that may be `unknown`; sets its threshold. 0: never.",
    )
    loose: bool = Field(
        default=True,
        description="Lower the thresholds until 90 % of rows in lower case without punctuation are known too.",
    )
    groups: list[list[str]] = Field(
        default=[],
        description="Tasks that answer together, such as one task in two data sets: [[a, b], [c, d]]. Their experts' "
        "probabilities are mixed by label name, weighted by the router.",
        json_schema_extra={"neutral": []},
    )
    require: Literal["all"] | Annotated[float, Field(gt=0, le=1)] | tuple[str, ...] = Field(
        default="all",
        description="Experts required before the router is trained: all, a share of them, or a list of tasks.",
    )
    compare_depths: Literal["auto"] | bool = Field(
        default="auto",
        description="Also train routers on fewer layers and report them; auto: if their features take up to 4 GB.",
    )

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        named = isinstance(layers, str)
        ends = re.fullmatch(r"auto|all|last|embeddings|trunk|(\d{1,4})-(\d{1,4})", str(layers))
        if not layers or (named and (not ends or (ends[1] and int(ends[1]) > int(ends[2])))):
            raise setting_error(
                f"{layers!r} does not name hidden states", fix="write auto, all, last, embeddings, trunk, 0-4 or [0, 4]"
            )
        return layers

    @property
    def most_rows(self) -> int:
        """The largest number of training rows of each task that a router may take."""
        return ROUTER_ROWS[-1] if self.rows_per_task == "auto" else self.rows_per_task

    def portions(self, available: int) -> list[int]:
        """Return the training rows of each task to take in turn, where the largest task has ``available`` rows."""
        if self.rows_per_task != "auto":
            return [self.rows_per_task]
        smaller = [rows for rows in ROUTER_ROWS if rows < available]
        return [*smaller, *ROUTER_ROWS[len(smaller) : len(smaller) + 1]]

    def hidden_states(self, trunk: int, layers: int, width: int) -> str | tuple[int, ...]:
        """Return ``layers`` with ranges, ``trunk`` and ``auto`` written out, as ``FeatureSpec.layers`` takes them.

        Neighbouring hidden states differ little: on SmolLM2-135M (31 states, 17 tasks, 400 rows each, 3 seeds) routers
        of 3, 4, 8 and all states had an accuracy of 0.963, 0.963, 0.965 and 0.959.

        Args:
            trunk: Number of layers in the trunk.
            layers: Number of layers of the base.
            width: Width of its hidden states.

        Returns:
            ``all``, ``last``, ``embeddings``, or indices of hidden states, where 0 is the embeddings.
        """
        if self.layers == "auto":
            values = width * (2 if self.pooling == "both" else 1)
            count = max(LEAST_STATES, min(MOST_STATES, MOST_FEATURES // values))
            return "all" if count > layers else tuple(round(i * layers / (count - 1)) for i in range(count))
        if not isinstance(self.layers, str) or self.layers in ("all", "last", "embeddings"):
            return self.layers
        first, last = (0, trunk) if self.layers == "trunk" else map(int, self.layers.split("-"))
        return tuple(range(first, last + 1))
