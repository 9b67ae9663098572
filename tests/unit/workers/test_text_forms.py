"""Rows without their formatting."""

from __future__ import annotations

import pytest

from workers.data.examples import Example
from workers.data.text_forms import strip_case_and_punctuation, strip_formatting


def strip(*texts, choices=()):
    return strip_formatting(Example(tuple(texts), choices, 1, "group", "the answer"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where is the Louvre?", "where is the louvre"),
        ("Question: Who wrote 'Emma'?", "who wrote emma"),
        ("sentence1: A man.\nsentence2: Nobody, at all!", "a man nobody at all"),
        ("It's half_past 3 -- e.g. now...", "it s half past 3 e g now"),
        ("  much \t white\n space ", "much white space"),
        ("É très ÜBER, 日本語。", "é très über 日本語"),
        ("a ratio of 1:2 at 10:30", "a ratio of 1 2 at 10 30"),
        ("...", "..."),  # nothing would be left
        ("!! :-)", "!! :-)"),
    ],
)
def test_lower_case_without_punctuation_and_field_prefixes(text, expected):
    assert strip(text).texts == (expected,)


def test_a_pair_and_options_become_one_text():
    assert strip("Premise: Yes.", "Hypothesis: No!").texts == ("yes no",)
    found = strip("Question: Which?", choices=("(A) Cats", "answer: Dogs."))
    assert (found.texts, found.choices) == (("which a cats dogs",), ())


def test_what_else_a_row_has_stays():
    found = strip("Text?")
    assert (found.label, found.group, found.answer) == (1, "group", "the answer")


def test_a_row_that_is_typed_loosely_keeps_its_fields():
    found = strip_case_and_punctuation(Example(("Premise: Yes.", "..."), ("(A) Cats",), 1, "group", "The answer."))
    assert found == Example(("premise yes", "..."), ("a cats",), 1, "group", "The answer.")


def test_stripping_twice_is_stripping_once():
    once = strip("Question: It's a pair,", "is it NOT?")
    assert strip_formatting(once) == once
