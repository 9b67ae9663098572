"""Connecting to a cluster that others started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import environment
from quickstart import ROOT
from ray_cluster import running_cluster

from cluster import attaching
from cluster.error import ClusterError
from cluster.local import ray_session

pytestmark = pytest.mark.integration

# The driver must be called back, which a session of another mode of authentication is not.
DRIVER = """
from cluster.local import ray_session
import ray
with ray_session():
    actor = ray.remote(num_cpus=0)(type("Length", (), {"of": lambda self, data: len(data)})).remote()
    print(ray.get(actor.of.remote(ray.put(bytes(1_000_000))), timeout=60))
"""


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Home folders: one without a token, and two with different ones."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("none", "one", "other")}
    for name in ("one", "other"):
        (found[name] / ".ray").mkdir()
        (found[name] / ".ray" / "auth_token").write_text(name.ljust(64, "0"))
    return found


@pytest.fixture(scope="module", params=["none", pytest.param("one", marks=pytest.mark.thorough)])
def started(request: pytest.FixtureRequest, homes: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """A cluster as `ray start` makes it in a home without or with a token: its home and its address."""
    with running_cluster(["--num-cpus=1"], HOME=str(homes[request.param])) as (address, _):
        yield request.param, address


@pytest.mark.parametrize("home", ["one", "other"])
def test_a_driver_authenticates_as_the_cluster_does(started, homes, home):
    of_cluster, address = started
    env = environment(RAY_ADDRESS=address, HOME=str(homes[home]), PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", DRIVER], env=env, capture_output=True, text=True, check=False)
    if (of_cluster, home) == ("one", "other"):
        assert "the Ray cluster asks for a token; this machine has none or another" in done.stderr
        assert "RAY_AUTH_TOKEN" in done.stderr
    else:
        assert done.stdout == "1000000\n", done.stderr


def test_a_driver_without_a_token_is_told_where_to_get_one(started, homes):
    of_cluster, address = started
    env = environment(RAY_ADDRESS=address, HOME=str(homes["none"]), PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", DRIVER], env=env, capture_output=True, text=True, check=False)
    if of_cluster == "none":
        assert done.stdout == "1000000\n", done.stderr
    else:
        assert "copy ~/.ray/auth_token of the cluster's head" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no port", "127.0.0.1:999999"])
def test_an_address_where_nothing_answers_is_an_error_within_seconds(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ClusterError, match="no Ray cluster answers") as caught, ray_session():
        pass
    assert caught.value.where == f"RAY_ADDRESS={address}"
    assert time.monotonic() - began < 10


def test_other_versions_are_named(monkeypatch):
    monkeypatch.setattr(attaching, "health_error", lambda address, mode: None)
    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0\n    Python: 3.9")
    found = attaching.connection_error("host:1", "disabled", error)
    assert found.what == "Version mismatch: The cluster was started with: Ray: 1.0 Python: 3.9"
    assert "same versions" in found.fix
