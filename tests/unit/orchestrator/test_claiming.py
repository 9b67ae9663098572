"""Who of several commands comes to hold a library: every order of their requests to the store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, cycle, product

import pytest

from orchestrator.registry import claiming
from orchestrator.registry.claiming import Claiming
from orchestrator.registry.claims import Claim, Sighting, judge, observe
from orchestrator.registry.process_identity import ProcessIdentity
from ttmoe.errors import InputError

TTL = 90.0
LOST = 9  # a process that ended before the race
# Of each command, one after another: the first has the lowest token at first, later the last one has.
TOKENS = (("b", "h", "j", "k"), ("c", "e", "f", "i"), ("d", "a", "g", "l"))


def process(number: int) -> ProcessIdentity:
    return ProcessIdentity("host", "machine", number, "1")


def made(token: str, number: int = LOST, **more: object) -> Claim:
    return replace(Claim(token, process(number), "ttmoe run", True, 0.0, 0.0, TTL), **more)


class TestJudge:
    """Whether a claim holds, from what is seen of it."""

    @pytest.mark.parametrize(
        ("presence", "is_held", "changed", "age", "expected"),
        [
            ("gone", True, True, 0, "lapsed"),
            ("gone", False, False, 0, "lapsed"),
            ("running", True, False, 0, "holds"),
            ("running", True, False, 1000, "holds"),  # it was stopped by a debugger, or the store was not available
            ("running", False, False, TTL - 1, "unclear"),
            ("running", False, False, TTL, "holds"),
            ("unknown", True, False, TTL - 1, "unclear"),
            ("unknown", True, False, TTL, "lapsed"),
            ("unknown", True, True, 1, "holds"),
            ("unknown", True, True, TTL, "lapsed"),
            ("unknown", False, False, 1, "unclear"),
            ("unknown", False, True, 1, "unclear"),
            ("unknown", False, False, TTL, "lapsed"),
        ],
    )
    def test_it(self, presence, is_held, changed, age, expected):
        assert judge(Sighting(made("a", is_held=is_held), 5.0, changed), presence, 5.0 + age) == expected

    def test_an_observation_keeps_the_time_until_the_claim_changes(self):
        first = observe({}, {"a": made("a", seen=5000.0)}, 1.0)
        again = observe(first, {"a": made("a", seen=5000.0)}, 2.0)
        assert again == first == {"a": Sighting(made("a", seen=5000.0), 1.0)}
        assert observe(again, {}, 3.0) == first  # it may be written once more by a request that was repeated
        changed = observe(again, {"a": made("a", seen=10.0)}, 4.0)  # the other clock was set back
        assert changed == {"a": Sighting(made("a", seen=10.0), 4.0, changed=True)}

    def test_a_claim_survives_its_text(self):
        claim = made("a", over=("b", "c"))
        assert Claim.from_text("a", claim.to_text()) == claim
        assert Claim.from_text("a", claim.to_text()[:-1] + ', "later": 1}') == claim


class Killed(BaseException):
    """Ends a command at once."""


class Race:
    """Commands whose requests to the store are made one at a time, in the order of a schedule.

    Each command is a thread that waits before each request until it is its turn. Time passes with each turn, and those
    that hold the library and live renew their claims.
    """

    def __init__(self, commands: int, presence: str, lapsed: tuple[Claim, ...] = ()) -> None:
        self.claims = {claim.token: claim for claim in lapsed}
        self.presence, self.now = presence, 0.0
        self.turns = [threading.Semaphore(0) for _ in range(commands)]
        self.over = threading.Semaphore(0)
        self.ends: dict[int, Claim | InputError | None] = {}
        self.renewed: dict[str, float] = {}
        self.dead: set[int] = set()
        self.threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(commands)]

    def go(self, schedule: Iterator[int], deaths: dict[int, int] | None = None) -> None:
        """Run all commands to their ends; kill command ``i`` at its turn ``deaths[i]``."""
        turns = dict.fromkeys(range(len(self.threads)), 0)
        for thread in self.threads:
            thread.start()
            self._wait()
        for i in schedule:
            if len(self.ends) == len(self.threads):
                return
            if i in self.ends:
                continue
            turns[i] += 1
            assert turns[i] < 1000, "nobody comes to hold the library"
            if (deaths or {}).get(i) == turns[i]:
                self.dead.add(i)
            self.now += claiming.PAUSE
            self.turns[i].release()
            self._wait()
            ended = {LOST, *self.dead}
            held = [claim for claim in self.claims.values() if claim.is_held and claim.holder.process not in ended]
            assert len(held) <= 1
            for claim in held:
                if self.now - self.renewed.setdefault(claim.token, self.now) > TTL / 4:
                    self.renewed[claim.token] = self.now
                    self.claims[claim.token] = replace(claim, seen=self.now)

    @property
    def holders(self) -> list[int]:
        return [i for i, end in self.ends.items() if isinstance(end, Claim)]

    def present(self, identity: ProcessIdentity) -> str:
        if self.presence == "unknown":
            return "unknown"
        return "gone" if identity.process in {LOST, *self.dead} else "running"

    def step(self) -> int:
        i = int(threading.current_thread().name)
        self.over.release()
        self.turns[i].acquire()
        if i in self.dead:
            raise Killed
        return i

    def read(self) -> dict[str, Claim]:
        self.step()
        return dict(self.claims)

    def put(self, claim: Claim) -> None:
        self.step()
        self.claims[claim.token] = claim

    def remove(self, token: str) -> None:
        if int(threading.current_thread().name) not in self.dead:
            self.step()
            self.claims.pop(token, None)

    def _wait(self) -> None:
        assert self.over.acquire(timeout=20)

    def _run(self, i: int) -> None:
        threading.current_thread().name = str(i)
        tokens = iter(TOKENS[i])
        command = Claiming(
            self, "ttmoe run", "", lambda _: None, process(i), TTL, lambda: self.now, lambda _: None,
            new_token=lambda: next(tokens),
        )  # fmt: skip
        try:
            self.ends[i] = command.prevail()[0]
        except InputError as error:
            self.ends[i] = error
        except Killed:
            self.ends[i] = None
        except StopIteration:  # it made many claims, and none prevailed
            self.ends[i] = None
        self.over.release()


def orders(commands: int, length: int) -> Iterator[Iterator[int]]:
    """Every order of the first turns, after which all have a turn in rotation."""
    for first in product(range(commands), repeat=length):
        yield chain(first, cycle(range(commands)))


@pytest.fixture(params=["running", "unknown"], ids=["one host", "several hosts"])
def presence(request):
    return request.param


def run(race: Race, schedule: Iterator[int], monkeypatch: pytest.MonkeyPatch, deaths: dict[int, int] | None = None):
    monkeypatch.setattr(claiming, "presence", race.present)
    race.go(schedule, deaths)
    return race


@pytest.mark.parametrize(("commands", "length"), [(2, 8), (3, 5)])
def test_of_several_commands_exactly_one_comes_to_hold_it(presence, commands, length, monkeypatch):
    for schedule in orders(commands, length):
        race = run(Race(commands, presence), schedule, monkeypatch)
        assert len(race.holders) == 1
        assert list(race.claims) == [race.ends[race.holders[0]].token]
        assert all(isinstance(end, (Claim, InputError)) for end in race.ends.values())


def test_a_lapsed_claim_is_taken_over_by_one(presence, monkeypatch):
    for schedule in orders(2, 8):
        race = run(Race(2, presence, (made("x"),)), schedule, monkeypatch)
        assert len(race.holders) == 1
        holder = race.ends[race.holders[0]]
        assert list(race.claims) == [holder.token]
        assert holder.over == ("x",)


@pytest.mark.parametrize("death", range(2, 6))
def test_when_one_is_killed_at_any_request_the_other_comes_to_hold_it(presence, death, monkeypatch):
    """Or is refused, if the one that was killed held it before."""
    for schedule in orders(2, 6):
        race = run(Race(2, presence), schedule, monkeypatch, {0: death})
        if isinstance(race.ends[1], InputError):
            assert [claim.holder.process for claim in race.claims.values() if claim.is_held] == [0]
        else:
            assert 1 in race.holders
