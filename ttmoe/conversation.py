"""Conversations: lists of messages, as data sets and chat models have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_KEYS = (("role", "content"), ("from", "value"))  # as OpenAI's API names them, and as ShareGPT's data sets do


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: The text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages, the oldest first.

    If the last one is the assistant's, it is a training row, of which every turn of the assistant is an answer to
    learn. Otherwise the assistant answers next.
    """

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, messages: Any) -> Conversation:
        """Return the conversation of a list of messages, or of its JSON text.

        A message is ``{"role": ..., "content": ...}`` with the role ``system``, ``user`` or ``assistant``, or
        ``{"from": ..., "value": ...}`` with ``system``, ``human`` or ``gpt``. White space at the ends of texts, and
        empty messages of the system, are removed.

        Raises:
            ValueError: If it is something else, a text is empty, or there is no message of the user.
        """
        if isinstance(messages, str):
            try:
                messages = json.loads(messages)
            except ValueError as error:
                raise ValueError("it is not a list of messages") from error
        if not isinstance(messages, list | tuple):
            raise ValueError("it is not a list of messages")
        read = [_message(number, message) for number, message in enumerate(messages, 1)]
        found = tuple(message for message in read if message.content or message.role != "system")
        if not all(message.content for message in found):
            empty = next(i for i, message in enumerate(read, 1) if not message.content and message.role != "system")
            raise ValueError(f"message {empty} is empty")
        if not any(message.role == "user" for message in found):
            raise ValueError("no message is of the user")
        return cls(found)

    @property
    def answer(self) -> str:
        """The assistant's last turn if it ends the conversation, else ""."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else ""

    @property
    def prompt(self) -> Conversation:
        """The conversation up to the answer that ends it, if one does."""
        return Conversation(self.messages[:-1]) if self.answer else self

    @property
    def text(self) -> str:
        """What a router and experts for plain texts read: the user's turns, one after another, each on a line.

        The system's and the assistant's turns are left out, so that a plain text is the conversation of one message.
        """
        return "\n".join(message.content for message in self.messages if message.role == "user")


def single_turn(text: str) -> Conversation:
    """Return the conversation that a plain text begins: one message of the user."""
    return Conversation((Message("user", text),))


def answered_part(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages up to the last one of the assistant; empty if there is none with one of the user before it.

    Without an answer, what follows is nothing to learn from.
    """
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=0)
    return tuple(messages[: last + 1]) if any(m.role == "user" for m in messages[:last]) else ()


def _message(number: int, message: Any) -> Message:
    keys = next((keys for keys in _KEYS if isinstance(message, dict) and set(keys) <= message.keys()), None)
    if keys is None:
        raise ValueError(f"message {number} has no role and content")
    role, content = (message[key] for key in keys)
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"message {number} has the role {role!r}; known: {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"the content of message {number} is no text")
    return Message(_ROLES[role], content.strip())
