"""Which version a command means, and how a router stands to the experts, on a registry that is a list."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.experts.router_state import read_router_state
from orchestrator.experts.version_selection import choose_version
from orchestrator.registry import Version
from ttmoe.errors import InputError


def version(task: str, number: int, *aliases: str) -> Version:
    return Version(
        f"lib.{task}", number, "lib", task, f"{task}{number}", {}, {}, aliases, "file:///x", "run", datetime.now(UTC)
    )


class Listed:
    """What the commands ask of a registry."""

    def __init__(self, *versions: Version, lock: dict[str, str] | None = None) -> None:
        self.versions, self.lock = list(versions), lock

    def experts(self, library: str, *, every: bool = False) -> list[Version]:
        assert every
        return self.versions

    def router(self, library: str) -> Version | None:
        return None if self.lock is None else version("router", 1, "champion")

    def router_lock(self, router: Version) -> dict[str, str] | None:
        return self.lock


TWO = Listed(version("a", 1, "champion"), version("a", 2, "candidate"), version("b", 1, "candidate"))


@pytest.mark.parametrize(
    ("name", "number", "chosen"),
    [("a", None, 1), ("a", 2, 2), ("a@v2", None, 2), ("a@2", None, 2), ("a@candidate", None, 2), ("b", None, 1)],
)
def test_the_version_that_a_name_means(name: str, number: int | None, chosen: int) -> None:
    assert choose_version(TWO, "lib", name, number).version == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("c", None, "there are: a, b"),
        ("a", 3, "v1 champion, v2 candidate"),
        ("b@champion", None, "'champion'"),
        ("a@candidate", 1, "no version 1"),
    ],
)
def test_what_is_not_there_is_refused(name: str, number: int | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose_version(TWO, "lib", name, number)  # type: ignore[arg-type]


def test_champions_alone_make_a_router_stale() -> None:
    def state(lock: dict[str, str] | None, *versions: Version) -> Any:
        return read_router_state(Listed(lock=lock), "lib", versions)  # type: ignore[arg-type]

    champion, newer = version("a", 1, "champion"), version("a", 2, "candidate")
    assert state(None, champion) is None
    fine = state({"a": "a1"}, champion, newer)
    assert (fine.stale, fine.describe()) == (False, "")
    assert (fine.names(champion), fine.names(newer)) == (True, False)
    other = state({"a": "a1"}, version("a", 2, "champion"))
    assert (other.stale, other.other) == (True, ("a",))
    assert "STALE: it answers with another version of a" in other.describe()
    gone = state({"a": "a1", "b": "b1"}, champion)
    assert (gone.stale, gone.gone) == (True, ("b",))
    more = state({"a": "a1"}, champion, version("c", 1, "champion"))
    assert (more.stale, more.unknown) == (False, ("c",))
    assert "it does not know c" in more.describe()
