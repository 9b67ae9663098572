"""What a run forgets when an embedded Ray ended and another is started. No Ray starts."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from cluster.error import ClusterEndedError
from orchestrator.run import ray_restarts, stages
from orchestrator.run.run_outcome import RunInProgress
from workers.failure import Failure


def test_the_experts_that_failed_before_ray_ended_do_not_stop_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, failure = [], Failure("code", "ValueError", "x")

    @contextmanager
    def session():
        yield

    def run_stages(context: Any, made: RunInProgress) -> str:
        result = made.stage_result
        seen.append((dict(result.failed), result.stopped))
        if len(seen) > 1:
            return "served"
        result.failed["a"] = result.stopped = failure
        raise ClusterEndedError("Ray's process raylet ended", where="this machine", fix="see its memory")

    monkeypatch.setattr(stages, "ray_session", session)
    monkeypatch.setattr(stages, "_run_stages", run_stages)
    monkeypatch.setattr(stages, "read_library_state", lambda plan, registry: None)
    plan = SimpleNamespace(config=SimpleNamespace(failures=SimpleNamespace(retries=1)))
    arguments = cast(Any, (plan, None, None, None, "run", RunInProgress("lib", ("a",)), Console(quiet=True), None))
    assert stages.run_on_ray(*arguments) == "served"
    assert seen == [({}, None)] * 2


@pytest.mark.parametrize(("signal", "raised"), [(0, ClusterEndedError), (15, KeyboardInterrupt)])
def test_an_end_of_ray_after_sigterm_is_no_fault(monkeypatch: pytest.MonkeyPatch, signal: int, raised: type) -> None:
    """Systemd and Slurm send it to all processes of a command."""

    @contextmanager
    def session():
        raise ClusterEndedError("Ray's process raylet ended", where="this machine", fix="see its memory")
        yield

    monkeypatch.setattr(stages, "ray_session", session)
    monkeypatch.setattr(ray_restarts, "terminated_by", lambda: signal)
    plan = SimpleNamespace(config=SimpleNamespace(failures=SimpleNamespace(retries=0)))
    arguments = cast(Any, (plan, None, None, None, "run", RunInProgress("lib", ("a",)), Console(quiet=True), None))
    with pytest.raises(raised):
        stages.run_on_ray(*arguments)
