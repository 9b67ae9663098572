"""What is done after which failure."""

from __future__ import annotations

import pytest

from orchestrator.config import Failures
from orchestrator.failure_policy import GiveUp, Retry, decide, hopeless, said
from workers.failure import Failure, failure_of


def fail(kind, message="m", error="E"):
    return Failure(kind, error, message)


def run_of(*kinds):
    return [fail(kind) for kind in kinds]


@pytest.mark.parametrize("kind", ["system", "died", "stalled"])
def test_the_system_is_tried_again_ever_later_and_then_given_up(kind):
    limits = Failures(retries=3)
    found = [decide(run_of(*[kind] * n), limits) for n in range(1, 5)]
    assert found[:3] == [Retry(1.0), Retry(5.0), Retry(20.0)]
    assert found[3] == GiveUp()


def test_failures_of_the_system_count_together_whatever_they_look_like():
    assert decide(run_of("died", "stalled", "system", "died"), Failures(retries=3)) == GiveUp()


def test_a_lost_node_is_never_held_against_a_job():
    assert decide(run_of(*["lost"] * 50), Failures(retries=0)) == Retry()
    # and does not use up the retries of anything else
    assert decide(run_of(*["lost"] * 50, "died"), Failures(retries=1)) == Retry(1.0)


def test_a_full_memory_is_tried_once_more_in_less():
    assert decide(run_of("memory"), Failures()) == Retry(smaller=True)
    assert decide(run_of("memory", "died", "memory"), Failures()) == GiveUp()


def test_the_users_code_is_not_tried_again_unless_asked():
    assert decide(run_of("code"), Failures()) == GiveUp()
    assert decide(run_of("code"), Failures(code_retries=1)) == Retry(1.0)
    assert decide(run_of("code", "code"), Failures(code_retries=1)) == GiveUp()


def test_alike_from_the_start_is_hopeless():
    first = [
        fail("code", "tasks.a: 'red' is no label of row 12 in /data/a.jsonl"),
        fail("code", "tasks.b: 'blue' is no label of row 7 in /data/b.jsonl"),
        fail("code", "tasks.c: 'x y' is no label of row 1003 in /data/c.jsonl"),
    ]
    assert hopeless(first, Failures(stop_after=3)) == first[0]
    assert hopeless(first[:2], Failures(stop_after=3)) is None  # too early to say
    assert hopeless([first[0], None, *first[1:]], Failures(stop_after=3)) is None  # one went well
    assert hopeless([*first[:2], fail("code", "something else")], Failures(stop_after=3)) is None
    assert hopeless(run_of("died", "died", "died"), Failures(stop_after=3)) is None  # the system's, not the code's
    assert hopeless(first, Failures(stop_after=0)) is None


def test_what_was_done_is_said_in_words():
    assert said(fail("died"), Retry(5.0)) == "tried again in 5 s: its process died"
    assert said(fail("memory"), Retry(smaller=True)) == "tried again in smaller micro-batches: the memory was full"
    assert said(fail("code"), GiveUp()) == "given up: the code or the data failed"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), "code"),
        (KeyError("x"), "code"),
        (FileNotFoundError(2, "no such file"), "code"),
        (PermissionError(13, "denied"), "code"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (OSError(28, "No space left on device"), "system"),
        (ConnectionResetError(104, "reset"), "system"),
        (TimeoutError("slow"), "system"),
    ],
)
def test_an_error_is_known_for_what_it_is(error, kind):
    assert failure_of(error).kind == kind


def test_a_failure_keeps_the_text_and_the_trace():
    try:
        raise ValueError("the reason")
    except ValueError as error:
        found = failure_of(error)
    assert str(found) == "ValueError: the reason"
    assert "test_failure_policy.py" in found.trace


def test_cudas_own_error_is_known():
    import torch

    assert failure_of(torch.cuda.OutOfMemoryError("CUDA out of memory")).kind == "memory"
