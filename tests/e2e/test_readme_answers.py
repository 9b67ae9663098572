"""The README's example texts are answered as any reader would, by the quickstart on all its steps."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from commands import succeeded, ttmoe
from quickstart import ROOT
from test_readme import COMMANDS

pytestmark = [pytest.mark.e2e, pytest.mark.thorough]

ANSWERS = {
    "where is the louvre": ("trec", "location"),
    "urgent: your mobile number has won a 2000 pound prize, call 09098790000 to claim": ("sms_spam", "spam"),
    "the battery died after two days": ("reviews", "negative"),
    "area man wins argument with his own dog": ("sarcasm", "sarcastic"),
    "import numpy as np": ("unknown", ""),
}
# The search and the comparison of depths change no answer.
SETTINGS = ("search=null", "router.compare_depths=false", f"storage.cache={ROOT / 'runs' / 'cache'}")


def test_the_examples_are_answered_as_a_reader_expects(tmp_path: Path) -> None:
    texts = next(shlex.split(line)[2:] for line in COMMANDS if line.startswith("ttmoe predict ") and "--" not in line)
    assert texts == list(ANSWERS)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    succeeded(ttmoe(tmp_path, "run", "quickstart", *settings, timeout=7200))
    done = succeeded(ttmoe(tmp_path, "predict", "--json", *texts))
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert {answer["text"]: (answer["task"], answer["label"]) for answer in answers} == ANSWERS
    assert all(answer["confidence"] > 0.8 for answer in answers if answer["task"] != "unknown")
