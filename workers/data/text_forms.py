"""Examples without formatting.

They measure how much routing depends on the form of a text instead of its content, and train routers to ignore it.
"""

from __future__ import annotations

import re
from dataclasses import replace

from workers.data.examples import Example

_PREFIX = re.compile(r"^\s*[A-Za-z][\w ]{0,20}:\s+", re.MULTILINE)  # "Question: ", "sentence1: "
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def strip_formatting(example: Example) -> Example:
    """Return the example with its texts and options joined to one lower-case text without punctuation and prefixes.

    A text that would become empty (punctuation alone) is only converted to lower case.
    """
    whole = " ".join(_PREFIX.sub("", text) for text in (*example.texts, *example.choices))
    return _with_texts(example, (_plain(whole),), ())


def strip_case_and_punctuation(example: Example) -> Example:
    """Return the example as typed in a hurry: each text and option in lower case, without punctuation."""
    texts, choices = (tuple(map(_plain, field)) for field in (example.texts, example.choices))
    return _with_texts(example, texts, choices)


def _with_texts(example: Example, texts: tuple[str, ...], choices: tuple[str, ...]) -> Example:
    """Return the example with other texts; of a conversation, the text alone that the router reads."""
    answer = "" if example.messages else example.answer
    return replace(example, texts=texts, choices=choices, answer=answer, messages=())


def _plain(text: str) -> str:
    lower = text.lower()
    return " ".join(_PUNCTUATION.sub(" ", lower).split()) or lower
