"""Drivers on several hosts with one MLflow server and one library: one works, and nothing is recorded twice.

A host is a child process with a machine id and a storage folder of its own, as in a container.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from test_tracking_unavailable import (  # noqa: F401  fixtures
    all_runs,
    before_job,
    check_whole,
    home,
    proxy,
    run,
    server,
    tags,
    write_config,
)

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

TTL = 4.0  # seconds


class Host:
    """A ``ttmoe run`` on a host of its own, which stops before its second expert until it is told to go on."""

    def __init__(self, config: Path, name: str, *, stops: bool = False) -> None:
        self.out, self.here = config.parent / f"{name}.txt", config.parent / f"{name}.here"
        self.go_on = config.parent / f"{name}.on"
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            try:
                self._work(config, name, stops)
            except BaseException:
                self.out.write_text(traceback.format_exc())
            finally:
                os._exit(70)
        self.pid = pid

    def _work(self, config: Path, name: str, stops: bool) -> None:
        from orchestrator.registry import claiming, process_identity

        process_identity.machine_id = lambda: name
        claiming.TTL = TTL
        own = config.with_name(f"{name}.yaml")
        own.write_text(config.read_text().replace("storage: {", f"storage: {{root: {name}, "))

        def wait() -> None:
            self.here.touch()
            assert tiny.wait_for(self.go_on.exists, 120)

        code, text = run(own, before_job("animals", wait)) if stops else run(own)
        self.out.write_text(text)
        os._exit(code)

    def end(self) -> tuple[int, str]:
        """Wait for its end. Return the exit code or -signal, and the output."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self.out.read_text() if self.out.exists() else ""

    def stopped(self) -> Host:
        assert tiny.wait_for(self.here.exists, 120), self.out.read_text()
        return self


@pytest.fixture
def start() -> Iterator[Callable[..., Host]]:
    """Start hosts, which are killed at the end."""
    hosts: list[Host] = []

    def begin(*arguments, **more) -> Host:
        hosts.append(Host(*arguments, **more))
        return hosts[-1]

    yield begin
    for host in hosts:
        try:
            os.kill(host.pid, signal.SIGKILL)
            os.waitpid(host.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def statuses(server, library) -> Counter:  # noqa: F811
    from orchestrator.registry import Registry

    registry = Registry.open(f"http://127.0.0.1:{server.port}", Path("unused"))
    return Counter((tags(each).get("task", "run"), each.info.status) for each in all_runs(registry, library))


def test_the_second_is_refused_and_leaves_the_runs_of_the_first(server, proxy, home, start):  # noqa: F811
    config = write_config(home, proxy, "refused")
    one = start(config, "one", stops=True).stopped()
    code, text = start(config, "two").end()
    assert code == 2, text
    assert f"another run of this library is in progress: `ttmoe run`, process {one.pid} on" in text
    found = statuses(server, "refused")
    assert found["run", "RUNNING"] == 1
    assert {status for _, status in found} <= {"RUNNING", "FINISHED"}  # nothing was closed
    one.go_on.touch()
    assert one.end()[0] == 0
    check_whole(server, "refused")
    code, text = start(config, "two").end()  # the lease was released: no waiting
    assert code == 0, text
    assert "waiting" not in text
    assert "To do: nothing" in text
    check_whole(server, "refused")


def test_the_lease_of_a_killed_driver_is_taken_over(server, proxy, home, start):  # noqa: F811
    config = write_config(home, proxy, "killed")
    one = start(config, "one", stops=True).stopped()
    os.kill(one.pid, signal.SIGKILL)
    assert one.end()[0] == -signal.SIGKILL
    assert statuses(server, "killed")["run", "RUNNING"] == 1
    code, text = start(config, "two").end()
    assert code == 0, text
    assert "waiting for up to 4 seconds for a sign of life of another run of this library" in text
    assert "without one, this run takes its place" in text
    check_whole(server, "killed")
    assert statuses(server, "killed")["run", "KILLED"] == 1


@pytest.mark.thorough
def test_a_driver_that_was_suspended_ends_when_it_wakes_up(server, proxy, home, start):  # noqa: F811
    config = write_config(home, proxy, "suspended")
    one = start(config, "one", stops=True).stopped()
    os.kill(one.pid, signal.SIGSTOP)
    code, text = start(config, "two").end()
    assert code == 0, text
    after = statuses(server, "suspended")
    one.go_on.touch()
    os.kill(one.pid, signal.SIGCONT)
    code, text = one.end()
    assert code == 1, text
    assert "another run took this library over, because this one gave no sign of life" in text
    assert statuses(server, "suspended") == after
    check_whole(server, "suspended")
