"""Requests of users to the driver of a run, and its answers, as tags of the run: any machine can write one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

_TAG = "request."
_Action = Literal["skip", "retry"]


@dataclass(frozen=True)
class RunRequest:
    """A request for the expert of one task.

    Attributes:
        action: ``skip`` or ``retry``.
        task: Name of the task.
        token: Identifies the request.
        answer: What the driver did; empty before.
    """

    action: _Action
    task: str
    token: str
    answer: str = ""

    @classmethod
    def new(cls, action: _Action, task: str) -> RunRequest:
        """Return a request that no one has made."""
        return cls(action, task, secrets.token_hex(4))

    def answered(self, answer: str) -> RunRequest:
        """Return the request with its answer."""
        return replace(self, answer=answer)

    def as_tag(self) -> dict[str, str]:
        """Return the tag of the run, for ``tag_run``."""
        return {_TAG + self.token: json.dumps({"action": self.action, "task": self.task, "answer": self.answer})}


def requests_in(tags: Mapping[str, str]) -> list[RunRequest]:
    """Return the requests among the tags of a run, without those that cannot be read: anyone can write a tag."""
    found = []
    for name, value in tags.items():
        if name.startswith(_TAG):
            try:
                content = json.loads(value)
                action, task, answer = content["action"], content["task"], content["answer"]
            except (ValueError, TypeError, KeyError):
                continue
            if action in get_args(_Action) and isinstance(task, str) and isinstance(answer, str):
                found.append(RunRequest(action, task, name.removeprefix(_TAG), answer))
    return found
