"""What was guessed of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskGuess:
    """The guess of a task, without its source.

    Attributes:
        kind: ``text``, ``pair``, ``choice``, ``generate`` or ``chat``.
        columns: The section ``columns`` of the task.
        label: Column of the label; None without one.
        label_names: ``label.names``, where the values need them; else empty.
        where: The section ``where``.
        unclear: Choices that were not clear, and why they were made so, as sentences.
        notes: What else follows from the rows, as sentences.
    """

    kind: str
    columns: dict[str, Any]
    label: str | None = None
    label_names: dict[str, str] = field(default_factory=dict)
    where: tuple[dict[str, Any], ...] = ()
    unclear: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def read_columns(self) -> list[str]:
        """The columns with one value in each row, that the task reads: of texts, answers and the label."""
        named = [value for key, value in self.columns.items() if isinstance(value, str) and key != "choices"]
        options = self.columns.get("choices", ())
        named += [] if isinstance(options, str) else list(options)
        return [*([] if self.kind == "chat" else named), *([self.label] if self.label else [])]

    def section(self) -> dict[str, Any]:
        """Return the task as a section of a config, without its source."""
        label: dict[str, Any] = {"column": self.label} if self.label else {}
        if self.label_names:
            label["names"] = self.label_names
        return (
            {"kind": self.kind, "columns": self.columns}
            | ({"label": label} if label else {})
            | ({"where": list(self.where)} if self.where else {})
        )
