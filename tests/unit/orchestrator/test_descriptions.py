"""Descriptions fit MLflow's columns, whatever the labels are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.recording.descriptions import describe_expert_model

LIMIT = 5000  # characters of MLflow's column


def test_long_labels_are_cut_and_stand_on_one_line() -> None:
    names = tuple(f"{i} one\ntwo " + "x" * 400 for i in range(300))
    data = SimpleNamespace(kind="text", label_names=names)
    expert: Any = SimpleNamespace(job=SimpleNamespace(task="t", data=data, classes=300, base=SimpleNamespace(id="b")))
    text = describe_expert_model("lib", expert)
    assert len(text) < LIMIT
    assert "0 one two..." in text
