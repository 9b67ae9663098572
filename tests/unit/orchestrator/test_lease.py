"""The lease of a library: held, renewed, released, taken over, and lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from orchestrator.registry import Registry, claiming
from orchestrator.registry.claim_tags import TagBoard
from orchestrator.registry.claiming import Claiming, elapsed
from orchestrator.registry.lease import Lease
from ttmoe.errors import InputError, WorkFailedError

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.registry import Registry
registry = Registry.open(f"sqlite:///{sys.argv[1]}/mlflow.db", Path(sys.argv[1]))
with registry.hold_lease("lib", "ttmoe run", print):
    print("held", flush=True)
    time.sleep(60)
"""
SHORT = 0.4  # seconds: a time to live for tests


@pytest.fixture
def registry(fresh_store, tmp_path):
    shutil.copy(fresh_store, tmp_path)
    return Registry.open(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


@pytest.fixture
def holder(registry, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def claims(registry):
    return TagBoard(registry, "lib").read()


def take_over(registry):
    """Take the lease over as a command on another host does, and release it."""
    board = TagBoard(registry, "lib")
    (lapsed,) = board.read()
    claim = replace(board.read()[lapsed], token="taker", command="ttmoe experts rm", over=(lapsed,))
    board.put(claim)
    board.remove(lapsed)
    return claim


@contextmanager
def limited(seconds):
    """Fail instead of waiting for ever."""
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGALRM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_a_second_command_is_refused_and_the_error_names_the_first(holder, registry):
    before = claims(registry)
    with pytest.raises(InputError) as caught, registry.hold_lease("lib", "ttmoe run", pytest.fail):
        pass
    assert caught.value.what.startswith("another run of this library is in progress: `ttmoe run`, process ")
    assert f"process {holder.pid} on " in caught.value.what
    assert caught.value.where == f"library lib in {registry.uri}"
    assert caught.value.fix == "wait until it ends, or stop it; its finished experts are kept"
    assert claims(registry) == before  # the refused one wrote nothing
    with registry.hold_lease("other", "ttmoe run", pytest.fail):
        pass


def test_a_killed_holder_on_this_machine_holds_nothing(holder, registry):
    """At once, and before its parent has read its exit code."""
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    (left,) = claims(registry)
    began = time.monotonic()
    with registry.hold_lease("lib", "ttmoe run", pytest.fail):
        (own,) = claims(registry).values()
        assert (own.over, own.holder.process) == ((left,), os.getpid())
    assert time.monotonic() - began < claiming.TTL / 4  # no renewal was waited for
    assert claims(registry) == {}


def test_it_can_be_held_again_and_an_error_frees_it(registry):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), registry.hold_lease("lib", "ttmoe run", pytest.fail):
            raise ZeroDivisionError
    with (
        registry.hold_lease("lib", "ttmoe run", pytest.fail),
        pytest.raises(InputError),
        registry.hold_lease("lib", "ttmoe run", pytest.fail),
    ):
        pass
    with pytest.raises(KeyboardInterrupt), registry.hold_lease("lib", "ttmoe run", pytest.fail):
        raise KeyboardInterrupt
    assert claims(registry) == {}


def test_a_claim_that_cannot_be_compared_is_withdrawn(registry, monkeypatch):
    reads = iter([False, True])

    def read(self):
        if next(reads):
            raise requests.ConnectionError
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(TagBoard, "read", read)
        registry.experiment("lib")
        with pytest.raises(requests.ConnectionError), registry.hold_lease("lib", "ttmoe run", pytest.fail):
            pass
    assert claims(registry) == {}


def test_a_claim_that_could_not_be_removed_does_not_refuse_the_same_process(registry, monkeypatch):
    """A notebook runs one command after another, and the server did not respond at the end of the first."""

    def refuse(*_):
        raise requests.ConnectionError

    with monkeypatch.context() as patch, registry.hold_lease("lib", "ttmoe run", pytest.fail):
        patch.setattr(TagBoard, "remove", refuse)
    assert len(claims(registry)) == 1
    with registry.hold_lease("lib", "ttmoe run", pytest.fail):
        assert len(claims(registry)) == 1
    assert claims(registry) == {}


def test_a_server_that_cannot_delete_a_tag_knows_that_a_claim_is_gone(registry, monkeypatch):
    """Whether it was held or had lost. MLflow's client says this of a server without the endpoint."""

    def refuse(*_):
        raise MlflowException("API request failed with error code 404 != 200", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(registry.client, "delete_experiment_tag", refuse)
    with registry.hold_lease("lib", "ttmoe run", pytest.fail):
        (claim,) = claims(registry).values()
        lost = replace(claim, token="lost", is_held=False)
        TagBoard(registry, "lib").put(lost)
        TagBoard(registry, "lib").remove(lost.token)
        assert list(claims(registry)) == [claim.token]
    assert claims(registry) == {}
    assert registry.lease_holder("lib") is None
    with registry.hold_lease("lib", "ttmoe run", pytest.fail):
        pass


def test_a_forked_process_does_not_release_it(registry):
    with registry.hold_lease("lib", "ttmoe run", pytest.fail):
        before = claims(registry)
        lease = Lease(TagBoard(registry, "lib"), next(iter(before.values())), elapsed(), "here")
        if (child := os.fork()) == 0:
            lease.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert claims(registry) == before


class TestTakenOver:
    """Another command took the lease over, because its holder was cut off or suspended."""

    @pytest.mark.parametrize("ignored", [False, True], ids=["", "SIGINT ignored"])
    def test_the_holder_is_interrupted_with_an_error(self, registry, monkeypatch, ignored):
        def end(*_):
            raise KeyboardInterrupt

        def work(registry):
            with registry.hold_lease("lib", "ttmoe run", pytest.fail):
                take_over(registry)
                threading.Event().wait()

        monkeypatch.setattr(claiming, "TTL", SHORT)
        before = [signal.signal(signal.SIGTERM, end), signal.getsignal(signal.SIGINT)]
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the holder went on"))
        try:
            if ignored:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            with limited(20), pytest.raises(WorkFailedError) as caught:
                work(registry)
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.signal(signal.SIGINT, before[1])
        assert "another run took this library over" in caught.value.what
        assert "`ttmoe experts rm`, process" in caught.value.what
        assert caught.value.code == 1
        assert list(claims(registry)) == ["taker"]  # the loser removed nothing and wrote nothing

    def test_operations_ask_first_and_fail(self, registry, monkeypatch):
        """Those of the recorder's thread too, and the last one, which ends the run that the taker now continues."""
        monkeypatch.setattr(Lease, "keep", lambda self: None)
        run = registry.start_run("lib", "run", {}, "", {})

        def work():
            with registry.hold_lease("lib", "ttmoe run", pytest.fail) as held, held.end_run_on_exit(run):
                take_over(registry)
                held.tag_run(run, {"a": 1})  # it was confirmed a moment ago
                later = elapsed() + claiming.TTL
                monkeypatch.setattr("orchestrator.registry.lease.elapsed", lambda: later)
                for store in (held.without_retries, held.with_retries(60, print)):
                    with pytest.raises(WorkFailedError):
                        store.tag_run(run, {"b": 1})
                raise OSError("what came of it")  # the user is told of the lease

        with pytest.raises(WorkFailedError):
            work()
        found = registry.run_record(run)
        assert (found.status, "a" in found.tags, "b" in found.tags) == ("RUNNING", True, False)

    def test_an_operation_ends_between_two_of_its_requests(self, registry, monkeypatch):
        """As when the process is suspended within it."""
        monkeypatch.setattr(Lease, "keep", lambda self: None)
        run = registry.expert_run("lib", None, "trec", "aa11", {})
        registry.finish_run(run, "FINISHED")  # as the taker did
        search = registry.client.search_runs

        def suspended(*arguments, **more):
            later = elapsed() + claiming.TTL
            monkeypatch.setattr("orchestrator.registry.lease.elapsed", lambda: later)
            take_over(registry)
            return search(*arguments, **more)

        monkeypatch.setattr(registry.client, "search_runs", suspended)
        with pytest.raises(WorkFailedError), registry.hold_lease("lib", "ttmoe run", pytest.fail) as held:
            held.expert_run("lib", None, "trec", "aa11", {})
        assert registry.run_record(run).status == "FINISHED"

    def test_a_renewal_at_the_same_moment_is_undone(self, registry):
        """The holder read its claim before the taker removed it, and wrote it after."""
        with registry.hold_lease("lib", "ttmoe run", pytest.fail):
            board = TagBoard(registry, "lib")
            (claim,) = board.read().values()
            lease = Lease(board, claim, elapsed(), "here")
            taker = take_over(registry)
            board.put(claim)
            with pytest.raises(WorkFailedError):
                lease.renew()
            assert board.read() == {claim.token: claim, "taker": taker}

    def test_without_a_taker_in_the_store_it_is_lost_too(self, registry):
        with registry.hold_lease("lib", "ttmoe run", pytest.fail):
            board = TagBoard(registry, "lib")
            (claim,) = board.read().values()
            lease = Lease(board, claim, elapsed(), "here")
            board.remove(claim.token)
            with pytest.raises(WorkFailedError, match="a command that has ended"):
                lease.renew()
            assert board.read() == {}


def test_it_is_renewed_again_after_an_outage(registry, monkeypatch):
    monkeypatch.setattr(claiming, "TTL", SHORT)
    read, out = TagBoard.read, threading.Event()

    def answer(self):
        if out.is_set():
            raise requests.ConnectionError("Connection refused")
        return read(self)

    monkeypatch.setattr(TagBoard, "read", answer)
    with registry.hold_lease("lib", "ttmoe run", pytest.fail) as held:
        out.set()
        time.sleep(2 * SHORT)
        with pytest.raises(requests.ConnectionError):  # nobody knows who holds it now
            held.start_run("lib", "run", {}, "", {})
        out.clear()
        held.start_run("lib", "run", {}, "", {})
        (before,) = claims(registry).values()
        end = time.monotonic() + 20
        while claims(registry)[before.token] == before and time.monotonic() < end:
            time.sleep(0.05)
        assert claims(registry)[before.token].seen > before.seen


def test_another_host_waits_for_a_sign_of_life(registry, monkeypatch):
    """It is refused if there is one, whatever the clocks show; otherwise it takes the lease over."""
    monkeypatch.setattr(claiming, "TTL", SHORT)
    monkeypatch.setattr(claiming, "PAUSE", 0.02)
    with registry.hold_lease("lib", "ttmoe run", pytest.fail):
        monkeypatch.setattr("orchestrator.registry.process_identity.machine_id", lambda: "another")
        said = []
        with pytest.raises(InputError, match="another run of this library") as caught:
            Claiming(TagBoard(registry, "lib"), "ttmoe run", "here", said.append).prevail()
        assert "if its host is lost, it counts as ended 0.4 seconds after its last sign of life" in caught.value.fix
        assert all("waiting for up to 0.4 seconds for a sign of life" in line for line in said)
        with monkeypatch.context() as patch:
            patch.setattr(Lease, "renew", lambda self: None)
            time.sleep(SHORT)  # so that no renewal is under way
            claim, _ = Claiming(TagBoard(registry, "lib"), "ttmoe run", "here", said.append).prevail()
        assert said
        assert len(claim.over) == 1
        assert list(claims(registry)) == [claim.token]
