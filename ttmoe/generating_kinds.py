"""Kinds of tasks whose experts generate text: they have no head, and share the language head of a causal base."""

from __future__ import annotations

GENERATING_KINDS = frozenset({"generate", "chat"})
"""``generate``: a prompt and its answer, as plain text; ``chat``: conversations, in the base's chat template."""
