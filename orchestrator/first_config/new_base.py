"""The base of a new config: an encoder for classes alone, a causal model where a task writes text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.config.loading import STARTER, recipe_text
from orchestrator.config.yaml_document import read_yaml
from ttmoe.generating_kinds import GENERATING_KINDS

_CAUSAL_RECIPE = "smollm2"
_ENCODER_POSITIONS, _CAUSAL_POSITIONS = 512, 8192
_KEPT = {"adapter": ("targets", "layers", "alpha"), "train": ("batch_size", "lr", "head_lr")}  # of the recipe


@dataclass(frozen=True)
class NewBase:
    """The base of a new config, and settings that go with it.

    Attributes:
        settings: Its section, without ``max_length``.
        positions: Tokens that it can read.
        reason: Why it was chosen.
        sections: Other sections of the config that differ from the defaults.
        max_length: Its ``max_length``; 0 before the lengths of rows are known.
    """

    settings: dict[str, Any]
    positions: int
    reason: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_length: int = 0

    def with_length(self, max_length: int) -> NewBase:
        """Return the same with this ``max_length``, or as many tokens as it can read."""
        return replace(self, max_length=min(max_length, self.positions))


def choose_base(kinds: Collection[str]) -> NewBase:
    """Return the base for tasks of these kinds: that of the starter, or SmolLM2, which writes text."""
    writing = GENERATING_KINDS & set(kinds)
    data = read_yaml(recipe_text(_CAUSAL_RECIPE if writing else STARTER), "recipe").data
    settings = {key: value for key, value in data["base"].items() if key != "max_length"}
    if not writing:
        return NewBase(
            settings, _ENCODER_POSITIONS, "all-MiniLM-L6-v2, a small encoder: every task has classes or options"
        )
    chats = " and conversations" if "chat" in writing else ""
    reason = f"SmolLM2-135M-Instruct, a small causal model: a task writes text{chats}"
    sections = {name: {key: data[name][key] for key in keys} for name, keys in _KEPT.items()}
    if kinds and not set(kinds) - GENERATING_KINDS:
        sections["train"].pop("head_lr")
    return NewBase(settings, _CAUSAL_POSITIONS, reason, sections)
