"""A row without its formatting: to see how much of routing reads the form and not the matter, and to allow for it."""

from __future__ import annotations

import re
from dataclasses import replace

from workers.data.examples import Example

_PREFIX = re.compile(r"^\s*[A-Za-z][\w ]{0,20}:\s+", re.MULTILINE)  # "Question: ", "sentence1: "
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def strip_formatting(example: Example) -> Example:
    """The example's texts and options as one: lower case, no punctuation, no field prefixes, no second field.

    What would be empty then (a row of punctuation alone) stays in lower case.
    """
    whole = " ".join(_PREFIX.sub("", text) for text in (*example.texts, *example.choices))
    return replace(example, texts=(_plain(whole),), choices=())


def strip_case_and_punctuation(example: Example) -> Example:
    """The example as someone in a hurry would type it: the same fields in lower case, without punctuation."""
    texts, choices = (tuple(map(_plain, field)) for field in (example.texts, example.choices))
    return replace(example, texts=texts, choices=choices)


def _plain(text: str) -> str:
    lower = text.lower()
    return " ".join(_PUNCTUATION.sub(" ", lower).split()) or lower
