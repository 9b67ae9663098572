"""What is done after which failure."""

from __future__ import annotations

import pytest

from orchestrator.config.schema import FailureSettings
from orchestrator.pool.failure_policy import GiveUp, Retry, common_failure, decide, describe_decision
from workers.failure import Failure, to_failure


def fail(kind, message="m", error="E"):
    return Failure(kind, error, message)


def run_of(*kinds):
    return [fail(kind) for kind in kinds]


@pytest.mark.parametrize("kind", ["system", "died", "stalled"])
def test_the_system_is_tried_again_ever_later_and_then_given_up(kind):
    limits = FailureSettings(retries=3)
    found = [decide(run_of(*[kind] * n), limits) for n in range(1, 5)]
    assert found[:3] == [Retry(1.0), Retry(5.0), Retry(20.0)]
    assert found[3] == GiveUp()


def test_failures_of_the_system_count_together_whatever_they_look_like():
    assert decide(run_of("died", "stalled", "system", "died"), FailureSettings(retries=3)) == GiveUp()


def test_a_lost_node_is_never_held_against_a_job():
    assert decide(run_of(*["lost"] * 50), FailureSettings(retries=0)) == Retry()
    # and does not use up the retries of anything else
    assert decide(run_of(*["lost"] * 50, "died"), FailureSettings(retries=1)) == Retry(1.0)


def test_a_full_memory_is_tried_once_more_in_less():
    assert decide(run_of("memory"), FailureSettings()) == Retry(smaller=True)
    assert decide(run_of("memory", "died", "memory"), FailureSettings()) == GiveUp()


def test_the_users_code_is_not_tried_again_unless_asked():
    assert decide(run_of("code"), FailureSettings()) == GiveUp()
    assert decide(run_of("code"), FailureSettings(code_retries=1)) == Retry(1.0)
    assert decide(run_of("code", "code"), FailureSettings(code_retries=1)) == GiveUp()


def test_alike_from_the_start_is_hopeless():
    first = [
        fail("code", "tasks.a: 'red' is no label of row 12 in /data/a.jsonl"),
        fail("code", "tasks.b: 'blue' is no label of row 7 in /data/b.jsonl"),
        fail("code", "tasks.c: 'x y' is no label of row 1003 in /data/c.jsonl"),
    ]
    assert common_failure(first, FailureSettings(stop_after=3)) == first[0]
    assert common_failure(first[:2], FailureSettings(stop_after=3)) is None  # too early to say
    assert common_failure([first[0], None, *first[1:]], FailureSettings(stop_after=3)) is None  # one went well
    assert common_failure([*first[:2], fail("code", "something else")], FailureSettings(stop_after=3)) is None
    assert (
        common_failure(run_of("died", "died", "died"), FailureSettings(stop_after=3)) is None
    )  # the system's, not the code's
    assert common_failure(first, FailureSettings(stop_after=0)) is None


def test_what_was_done_is_said_in_words():
    assert describe_decision(fail("died"), Retry(5.0)) == "tried again in 5 s: its process died"
    assert (
        describe_decision(fail("memory"), Retry(smaller=True))
        == "tried again in smaller micro-batches: the memory was full"
    )
    assert describe_decision(fail("code"), GiveUp()) == "given up: the code or the data failed"


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
    assert to_failure(error).kind == kind


def test_a_failure_keeps_the_text_and_the_trace():
    try:
        raise ValueError("the reason")
    except ValueError as error:
        found = to_failure(error)
    assert str(found) == "ValueError: the reason"
    assert "test_failure_policy.py" in found.trace


def test_cudas_own_error_is_known():
    import torch

    assert to_failure(torch.cuda.OutOfMemoryError("CUDA out of memory")).kind == "memory"
