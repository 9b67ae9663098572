"""The quickstart, run once for all tests here, on few rows and few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Done, ttmoe
from quickstart import few_steps


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands are typed."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray session for all commands of a module that run in this process."""
    from cluster.local import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="session")
def first(home: Path) -> Done:
    """The first ``ttmoe run quickstart`` in it."""
    return ttmoe(home, "run", "quickstart", *few_steps())
