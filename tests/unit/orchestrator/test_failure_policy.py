"""Decisions after failures, and how exceptions are classified."""

from __future__ import annotations

import pytest

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool.failure_policy import GiveUp, Retry, common_failure, decide, describe_decision
from workers.failure import Failure, to_failure


def fail(kind, message="m", error="E"):
    return Failure(kind, error, message)


def failures(*kinds):
    return [fail(kind) for kind in kinds]


@pytest.mark.parametrize("kind", ["system", "died", "stalled"])
def test_system_failures_are_retried_with_growing_delays_up_to_the_limit(kind):
    limits = FailureSettings(retries=3)
    decisions = [decide(failures(*[kind] * n), limits) for n in range(1, 5)]
    assert decisions[:3] == [Retry(1.0), Retry(5.0), Retry(20.0)]
    assert decisions[3] == GiveUp()


def test_all_kinds_of_system_failures_share_one_limit():
    assert decide(failures("died", "stalled", "system", "died"), FailureSettings(retries=3)) == GiveUp()


def test_a_lost_node_never_counts_as_a_failure_of_the_job():
    assert decide(failures(*["lost"] * 50), FailureSettings(retries=0)) == Retry()
    # and does not use up the retries of other failures
    assert decide(failures(*["lost"] * 50, "died"), FailureSettings(retries=1)) == Retry(1.0)


def test_out_of_memory_is_retried_once_with_less_memory():
    assert decide(failures("memory"), FailureSettings()) == Retry(reduce_memory=True)
    assert decide(failures("memory", "died", "memory"), FailureSettings()) == GiveUp()


def test_errors_of_the_code_are_not_retried_by_default():
    assert decide(failures("code"), FailureSettings()) == GiveUp()
    assert decide(failures("code"), FailureSettings(code_retries=1)) == Retry(1.0)
    assert decide(failures("code", "code"), FailureSettings(code_retries=1)) == GiveUp()


def test_the_same_error_of_all_first_jobs_is_a_common_failure():
    first = [
        fail("code", "tasks.a: 'red' is no label of row 12 in /data/a.jsonl"),
        fail("code", "tasks.b: 'blue' is no label of row 7 in /data/b.jsonl"),
        fail("code", "tasks.c: 'x y' is no label of row 1003 in /data/c.jsonl"),
    ]
    assert common_failure(first, FailureSettings(stop_after=3)) == first[0]
    assert common_failure(first[:2], FailureSettings(stop_after=3)) is None  # too few have finished
    assert common_failure([first[0], None, *first[1:]], FailureSettings(stop_after=3)) is None  # one succeeded
    assert common_failure([*first[:2], fail("code", "something else")], FailureSettings(stop_after=3)) is None
    assert (
        common_failure(failures("died", "died", "died"), FailureSettings(stop_after=3)) is None
    )  # a system failure, not an error of the code
    assert common_failure(first, FailureSettings(stop_after=0)) is None


def test_a_decision_is_described_with_its_reason():
    assert describe_decision(fail("died"), Retry(5.0)) == "retried in 5 s: worker process died"
    assert (
        describe_decision(fail("memory"), Retry(reduce_memory=True))
        == "retried in smaller micro-batches: out of memory"
    )
    assert describe_decision(fail("code"), GiveUp()) == "not retried: error in the code or the data"


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
def test_an_exception_is_classified(error, kind):
    assert to_failure(error).kind == kind


def test_a_failure_keeps_message_and_traceback():
    try:
        raise ValueError("the reason")
    except ValueError as error:
        failure = to_failure(error)
    assert str(failure) == "ValueError: the reason"
    assert "test_failure_policy.py" in failure.trace


def test_cudas_out_of_memory_error_is_classified():
    import torch

    assert to_failure(torch.cuda.OutOfMemoryError("CUDA out of memory")).kind == "memory"
