"""A row without its formatting, to see how much of routing reads the form and not the matter."""

from __future__ import annotations

import re
from dataclasses import replace

from workers.examples import Example

_PREFIX = re.compile(r"^\s*[A-Za-z][\w ]{0,20}:\s+", re.MULTILINE)  # "Question: ", "sentence1: "
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def stripped(example: Example) -> Example:
    """The example's texts and options as one: lower case, no punctuation, no field prefixes, no second field.

    What would be empty then (a row of punctuation alone) stays in lower case.
    """
    whole = " ".join(_PREFIX.sub("", text) for text in (*example.texts, *example.choices)).lower()
    return replace(example, texts=(" ".join(_PUNCTUATION.sub(" ", whole).split()) or whole,), choices=())
