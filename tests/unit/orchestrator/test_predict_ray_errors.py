"""How a worker of ``predict --ray`` tells the driver what failed. No Ray starts."""

from __future__ import annotations

import threading
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from cluster import embedded
from cluster.error import ClusterEndedError
from orchestrator.predict import ray_data
from orchestrator.predict.readers import FileChunk
from orchestrator.predict.sizing import PoolSize
from ttmoe.errors import InputError, WorkFailedError


class UnpicklableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} [/{two}]")
        self.lock = __import__("threading").Lock()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputError("no such row", where="a.csv:3", fix="mend it"), InputError, "a.csv:3: no such row\n  mend it"),
        (UnpicklableError(1, 2), WorkFailedError, "a worker failed: UnpicklableError: 1 [/2]"),
    ],
)
def test_an_error_of_any_class_reaches_the_driver_as_values(error, kind, text):
    def load(device):
        raise error

    worker = ray_data._Worker(SimpleNamespace(router=SimpleNamespace(load=load), device="cpu"))
    names = {"number": 0, **asdict(FileChunk("a.csv", "csv", lines=1, rows=1))}
    (message,) = worker({name: np.array([value]) for name, value in names.items()})["error"]
    assert isinstance(message, str)
    with pytest.raises(kind) as caught:
        ray_data._raise_error(message)
    assert type(caught.value) is kind
    assert text in str(caught.value)


class TestTheEndOfRay:
    @pytest.fixture
    def answer(self, monkeypatch):
        """A function that answers chunks with rows of results that the test makes."""

        def run(results, advance=None):
            rows = SimpleNamespace(iter_rows=lambda: results)
            dataset = SimpleNamespace(map_batches=lambda *_, **__: rows)
            monkeypatch.setattr(ray_data.ray.data, "from_items", lambda *_, **__: dataset)
            monkeypatch.setattr(embedded, "CHECK_SECONDS", 0.01)
            display = SimpleNamespace(advance=advance)
            embedded.while_alive(lambda: ray_data._answer_chunks([], PoolSize(1, 1, 0), None, display))

        return run

    @pytest.fixture
    def ended(self, monkeypatch):
        """Set when Ray's process has ended."""
        ended = threading.Event()

        def require_alive(cause=None):
            if ended.is_set():
                raise ClusterEndedError("Ray's process raylet ended", where="this machine", fix="f") from cause

        monkeypatch.setattr(embedded, "require_alive", require_alive)
        return ended

    def test_is_an_error_while_results_are_awaited(self, answer, ended):
        over = threading.Event()

        def results():
            yield {"error": "", "rows": 3}
            ended.set()
            over.wait(20)  # as long as Ray would be silent

        counted = []
        with pytest.raises(ClusterEndedError, match="raylet ended"):
            answer(results(), counted.append)
        assert (counted, over.is_set()) == ([3], False)
        over.set()

    @pytest.mark.parametrize("kind", [ray_data.ray.exceptions.RayError, RuntimeError])
    def test_is_the_error_that_is_reported_when_it_ended_the_results(self, answer, ended, kind):
        def results():
            ended.set()
            raise kind("lost")
            yield

        with pytest.raises(ClusterEndedError):
            answer(results())

    def test_of_another_cluster_is_a_failure_of_ray(self, answer, ended):
        def results():
            raise ray_data.ray.exceptions.RayError("lost")
            yield

        with pytest.raises(WorkFailedError, match="Ray failed: lost"):
            answer(results())

    def test_an_error_that_a_worker_reports_leaves_the_thread(self, answer, ended):
        with pytest.raises(InputError, match="no such row"):
            answer(iter([{"error": '[2, "no such row", "a.csv:3", "mend it"]', "rows": 0}]))
