"""Selection of versions, and the state of a router, on a registry that is a list."""

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
    """The part of a registry that the commands use."""

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
def test_a_name_selects_a_version(name: str, number: int | None, chosen: int) -> None:
    assert choose_version(TWO, "lib", name, number).version == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("c", None, "registered experts: a, b"),
        ("a", 3, "v1 champion, v2 candidate"),
        ("b@champion", None, "'champion'"),
        ("a@candidate", 1, "no version 1"),
    ],
)
def test_a_missing_version_is_an_error(name: str, number: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_version(TWO, "lib", name, number)  # type: ignore[arg-type]


def test_champions_alone_make_a_router_stale() -> None:
    def state(lock: dict[str, str] | None, *versions: Version) -> Any:
        return read_router_state(Listed(lock=lock), "lib", versions)  # type: ignore[arg-type]

    champion, newer = version("a", 1, "champion"), version("a", 2, "candidate")
    assert state(None, champion) is None
    fine = state({"a": "a1"}, champion, newer)
    assert (fine.stale, fine.describe()) == (False, "")
    assert (fine.uses(champion), fine.uses(newer)) == (True, False)
    other = state({"a": "a1"}, version("a", 2, "champion"))
    assert (other.stale, other.changed) == (True, ("a",))
    assert "STALE: it uses another version of a" in other.describe()
    gone = state({"a": "a1", "b": "b1"}, champion)
    assert (gone.stale, gone.removed) == (True, ("b",))
    more = state({"a": "a1"}, champion, version("c", 1, "champion"))
    assert (more.stale, more.unrouted) == (False, ("c",))
    assert "it does not route to c" in more.describe()
