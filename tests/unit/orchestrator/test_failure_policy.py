"""Decisions after failures, and how exceptions are classified."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool.failure_policy import GiveUp, Retry, common_failure, decide, describe_decision
from ttmoe.errors import InputError
from workers.failure import Failure, to_failure


def fail(kind, message="m", error="E"):
    return Failure(kind, error, message)


def failures(*kinds):
    return [fail(kind) for kind in kinds]


@pytest.mark.parametrize("kind", ["system", "stalled"])
def test_system_failures_are_retried_with_growing_delays_up_to_the_limit(kind):
    limits = FailureSettings(retries=3)
    decisions = [decide(failures(*[kind] * n), limits) for n in range(1, 5)]
    assert decisions[:3] == [Retry(1.0), Retry(5.0), Retry(20.0)]
    assert decisions[3] == GiveUp()


def test_d18_a_process_that_dies_again_is_retried_with_less_memory_up_to_the_limit():
    """The system kills without an error what takes too much memory; one death may be a chance."""
    decisions = [decide(failures(*["died"] * n), FailureSettings(retries=3)) for n in range(1, 5)]
    assert decisions == [Retry(1.0), Retry(5.0, True), Retry(20.0, True), GiveUp()]
    assert decide(failures("died", "stalled"), FailureSettings()) == Retry(5.0)


def test_all_kinds_of_system_failures_share_one_limit():
    assert decide(failures("died", "stalled", "system", "died"), FailureSettings(retries=3)) == GiveUp()


def test_lost_nodes_have_a_limit_of_their_own_and_growing_pauses():
    limits = FailureSettings(retries=0)
    decisions = [decide(failures(*["lost"] * n), limits) for n in range(1, 10)]
    assert decisions[:4] == [Retry(1.0), Retry(5.0), Retry(20.0), Retry(60.0)]
    assert decisions[4:] == [Retry(60.0)] * 4 + [GiveUp()]
    # and do not use up the retries of other failures
    assert decide(failures(*["lost"] * 8, "died"), FailureSettings(retries=1)) == Retry(1.0)


def test_preemption_is_retried_at_once_and_never_counts():
    preempted = replace(fail("lost"), preempted=True)
    assert decide([preempted] * 50, FailureSettings(retries=0, lost_retries=0)) == Retry()
    assert decide([*[preempted] * 50, fail("lost")], FailureSettings(lost_retries=1)) == Retry(1.0)


def test_failures_of_devices_have_the_limit_of_retries_for_themselves():
    limits = FailureSettings(retries=1)
    assert decide(failures("died", "device"), limits) == Retry(1.0)
    assert decide(failures("device", "died", "device"), limits) == GiveUp()


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


def test_failures_of_devices_are_no_common_failure_and_hide_none():
    limits, code = FailureSettings(stop_after=3), failures("code", "code", "code")
    assert common_failure(failures("device", "device", "device"), limits) is None
    assert common_failure([*code[:2], fail("device")], limits) is None
    assert common_failure([fail("device"), *code], limits) == code[0]


def test_a_decision_is_described_with_its_reason():
    assert describe_decision(fail("died"), Retry(5.0)) == "retried in 5 s: worker process died"
    assert describe_decision(fail("memory"), Retry(reduce_memory=True)) == "retried in smaller batches: out of memory"
    assert describe_decision(fail("device"), Retry(1.0)) == "retried in 1 s: device failed"
    assert describe_decision(fail("code"), GiveUp()) == "not retried: error in the code or the data"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), "code"),
        (KeyError("x"), "code"),
        (FileNotFoundError(2, "no such file"), "code"),
        (PermissionError(13, "denied"), "code"),
        (OSError(28, "No space left on device"), "system"),
        (ConnectionResetError(104, "reset"), "system"),
        (TimeoutError("slow"), "system"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "system"),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "system"),
        (SafetensorError("Error while deserializing header: invalid header"), "code"),
        (ValueError("a text about No space left on device"), "code"),
        (shutil.Error([("a", "b/c", "[Errno 28] No space left on device: 'b/c'")]), "system"),
    ],
)
def test_an_exception_is_classified(error, kind):
    assert to_failure(error).kind == kind


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (OSError(5, "Input/output error"), "system"),
        (PermissionError(13, "denied"), "code"),
        (OSError("Corrupt snappy compressed data"), "code"),  # of pyarrow: the file is damaged
        (ValueError("x"), "code"),
    ],
)
def test_a_message_for_the_user_is_of_the_kind_of_its_cause(cause, kind):
    error = InputError("cannot read the weights")
    error.__cause__ = cause
    assert to_failure(error).kind == kind


def test_a_failure_keeps_message_and_traceback():
    try:
        raise ValueError("the reason")
    except ValueError as error:
        failure = to_failure(error)
    assert str(failure) == "ValueError: the reason"
    assert "test_failure_policy.py" in failure.trace


# As torch writes them, after which it adds lines of advice.
_ADVICE = (
    "\nSearch for `{}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information."
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        torch.AcceleratorError("CUDA error: out of memory" + _ADVICE.format("cudaErrorMemoryAllocation")),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("cudaErrorMemoryAllocation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("Failed to allocate cuDNN workspace"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        MemoryError(),
    ],
    ids=str,
)
def test_lack_of_memory_in_all_its_shapes_is_memory(error):
    assert to_failure(error).kind == "memory"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered" + _ADVICE.format("cudaErrorAssert")),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        torch.AcceleratorError("an error of an accelerator without a known text"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: context is destroyed"),
        RuntimeError("CUDA error: no CUDA-capable device is detected"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
        RuntimeError("Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before"),
        RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
        RuntimeError("HIP error: the operation cannot be performed in the present state"),
    ],
    ids=str,
)
def test_any_other_error_of_a_device_is_of_kind_device(error):
    assert to_failure(error).kind == "device"


def test_texts_of_other_errors_are_not_searched():
    """A message may quote a row, and texts of torch's other errors name shapes and devices."""
    assert to_failure(ValueError("row 7: 'CUDA error: out of memory'")).kind == "code"
    shapes = "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
    devices = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    assert {to_failure(RuntimeError(text)).kind for text in (shapes, devices)} == {"code"}
