"""GPUs that fail, on a real Ray that is told of two: their processes end, and jobs go on where they can."""

from __future__ import annotations

import time

import pytest

from orchestrator.config.runtime_sections import FailureSettings
from orchestrator.pool.capacity import JobResources
from orchestrator.pool.work_units import WorkUnit
from orchestrator.pool.worker_pool import WorkerPool
from ttmoe.errors import WorkFailedError

pytestmark = pytest.mark.integration

TEXTS = ("CUDA error: device-side assert triggered", "CUDA error: uncorrectable ECC error encountered")


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray session for the module, with two GPUs that do not exist."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "")
        patch.delenv("RAY_AUTH_MODE")  # so that the value that Ray sets, and leaves, is undone
        ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


# Nested functions are pickled by value: the workers cannot import this file.
def on_gpus(folder, broken):
    """Return a job that returns its GPU, or raises torch's own errors on a broken one."""
    texts = TEXTS

    def work(key, report):
        import ray
        import torch

        (gpu,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        if gpu in broken:
            failed = len(list(folder.iterdir()))
            (folder / f"{key} {gpu} {failed}").touch()
            raise (torch.AcceleratorError if failed else RuntimeError)(texts[failed % 2])
        end = time.monotonic() + 120
        while broken and len(list(folder.iterdir())) < 2:  # without this, one GPU could do all jobs meanwhile
            assert time.monotonic() < end
            time.sleep(0.05)
        return gpu

    return work


def run(folder, broken, jobs):
    """Run jobs, and return the events with a failure or a result, the error that ended the run, and the pool."""
    (folder / "failed").mkdir()
    work, events, ended = on_gpus(folder / "failed", broken), [], None
    with WorkerPool(JobResources(1, 1), FailureSettings()) as pool:
        try:
            for event in pool.run([WorkUnit.of(str(i), work, (i,), folder / str(i)) for i in range(jobs)]):
                if event and (event.failure or event.done):
                    events.append(event)
        except WorkFailedError as error:
            ended = error
    return events, ended, pool


def test_of_two_devices_a_broken_one_is_left_out_and_all_jobs_are_done(tmp_path):
    events, _, pool = run(tmp_path, {"0"}, 40)
    assert {event.key: event.result for event in events if event.done} == {str(i): "1" for i in range(40)}
    failures = [event.failure for event in events if event.failure]
    assert [(failure.kind, failure.error) for failure in failures] == [
        ("device", "RuntimeError"), ("device", "AcceleratorError")]  # fmt: skip
    (device,) = pool.devices.left_out
    assert device.gpus == ("0",)
    assert failures[0].message == f"on GPU 0 of node {device.address}: {TEXTS[0]}"
    assert failures[1].message == f"on GPU 0 of node {device.address}, which gets no more work: {TEXTS[1]}"
    assert pool.started <= 4  # two at first, and one after each failure, the last of which keeps the GPU reserved


@pytest.mark.thorough
def test_a_run_whose_devices_are_all_broken_stops_and_names_them(tmp_path):
    events, error, pool = run(tmp_path, {"0", "1"}, 40)
    node = next(iter(pool.devices.left_out)).address
    assert f"two jobs in a row failed on every device: GPU 0 of node {node}, GPU 1 of node {node}; " in str(error)
    assert any(text in str(error) for text in TEXTS)
    assert [event.failure.kind for event in events] == ["device"] * 4
    assert not any(event.done for event in events)
