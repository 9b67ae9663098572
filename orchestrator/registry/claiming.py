"""How a command becomes the one that holds a library, on a store that cannot compare and swap.

Each request to the store is one committed transaction, so a read sees every write that was answered before it began,
whichever worker of a server answers: of two commands that each write a claim and then read all, at least one sees both.
The one that sees a lower token withdraws, and the one with the lowest waits until no other claim is left, so never both
prevail, and a claim that loses gives way to one that stays. Tokens are random and used once, so a request that is
repeated late restores at most a claim that nobody has any more, which lapses.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from orchestrator.registry.claim_tags import ClaimBoard
from orchestrator.registry.claims import Claim, Judgement, Sighting, judge, observe
from orchestrator.registry.process_identity import Presence, ProcessIdentity, presence, this_process
from ttmoe.errors import InputError

TTL = 90.0
"""Seconds without a sign of life after which the claim of another host lapses. A request that hangs ends after 60."""
PAUSE = 0.5  # seconds between two looks at the claims of others
own_tokens: set[str] = set()
"""Tokens that this process makes a claim with or holds. Its other claims could not be removed when they ended."""
_PATIENCE = 10.0  # seconds for another command to withdraw a claim that lost; then this one withdraws its own
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed() -> float:
    """Return a time in seconds that passes while the machine is suspended too, and that no setting of clocks moves."""
    return time.clock_gettime(_CLOCK)


def describe_claim(claim: Claim) -> str:
    """Return who made a claim and when, as text."""
    since, seen = (datetime.fromtimestamp(each) for each in (claim.since, claim.seen))
    who = f"`{claim.command}`, process {claim.holder.process} on {claim.holder.host}"
    return f"{who}, since {since:%Y-%m-%d %H:%M:%S}, last sign of life {seen:%H:%M:%S}"


@dataclass
class Claiming:
    """An attempt to become the holder of a library.

    Attributes:
        board: Where the claims are.
        command: This command, such as ``ttmoe run``.
        where: The store, for errors.
        notify: Receives a message when this command waits for another.
        holder: This process.
        ttl: Seconds without a sign of life after which the own claim lapses for others.
        clock: Returns the time in seconds, on any scale.
        sleep: Waits for some seconds.
        new_token: Returns a token that no claim had before.
    """

    board: ClaimBoard
    command: str
    where: str
    notify: Callable[[str], Any]
    holder: ProcessIdentity = field(default_factory=this_process)
    ttl: float = field(default_factory=lambda: TTL)
    clock: Callable[[], float] = elapsed
    sleep: Callable[[float], Any] = time.sleep
    new_token: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)
    _sightings: dict[str, Sighting] = field(default_factory=dict)

    def prevail(self) -> tuple[Claim, float]:
        """Claim the library until this command holds it.

        Returns:
            The claim that is held, and the time on ``clock`` at which no other was left.

        Raises:
            InputError: Another command holds it.
        """
        while True:
            self._wait_for_others()
            now = time.time()
            claim = Claim(self.new_token(), self.holder, self.command, False, now, now, self.ttl)
            own_tokens.add(claim.token)
            try:
                self.board.put(claim)
                if (alone := self._contend(claim)) is not None:
                    return self._take(claim, alone[1]), alone[0]
            except BaseException:
                own_tokens.discard(claim.token)
                with suppress(Exception):  # it lapses
                    self.board.remove(claim.token)
                raise
            own_tokens.discard(claim.token)
            self.board.remove(claim.token)

    def _wait_for_others(self) -> None:
        """Wait until every claim has lapsed or is withdrawn. Raise InputError if one holds."""
        began, told = self.clock(), False
        while others := self._judge(self.board.read()):
            for claim, judgement in others:
                if judgement == "holds":
                    raise _held_error(claim, self.where)
            if not told and self.clock() - began > PAUSE:
                told = True
                self.notify(_waiting(others[0][0]))
            self.sleep(PAUSE)

    def _contend(self, own: Claim) -> tuple[float, list[str]] | None:
        """Return when only lapsed claims were left and their tokens; None if the own claim has to be withdrawn."""
        began = self.clock()
        while True:
            at, claims = self.clock(), self.board.read()
            others = [claim for claim, _ in self._judge(claims) if claim.token != own.token]
            if own.token not in claims or any(claim.is_held or claim.token < own.token for claim in others):
                return None
            if not others:
                return at, [token for token in claims if token != own.token]
            if at - began > _PATIENCE:
                return None
            self.sleep(PAUSE)

    def _take(self, claim: Claim, lapsed: list[str]) -> Claim:
        """Mark the own claim as held, and remove the lapsed ones.

        The lease does not depend on the removal, which a server may not offer: their holders find their tokens in
        ``over``. Those that stay lapse again for the next command.
        """
        held = replace(claim, is_held=True, over=tuple(lapsed))
        self.board.put(held)
        for token in lapsed:
            with suppress(Exception):
                self.board.remove(token)
        return held

    def _judge(self, claims: dict[str, Claim]) -> list[tuple[Claim, Judgement]]:
        """Return the claims that have not lapsed, each with its judgement."""
        now = self.clock()
        self._sightings = observe(self._sightings, claims, now)
        judged = [(claim, judge(self._sightings[token], self._presence(claim), now)) for token, claim in claims.items()]
        return [(claim, judgement) for claim, judgement in judged if judgement != "lapsed"]

    def _presence(self, claim: Claim) -> Presence:
        if claim.holder == self.holder:
            return "running" if claim.token in own_tokens else "gone"
        return presence(claim.holder)


def _held_error(claim: Claim, where: str) -> InputError:
    kept = "wait until it ends, or stop it; its finished experts are kept"
    if presence(claim.holder) == "unknown":
        kept += f"; if its host is lost, it counts as ended {claim.ttl:g} seconds after its last sign of life"
    return InputError(f"another run of this library is in progress: {describe_claim(claim)}", where=where, fix=kept)


def _waiting(claim: Claim) -> str:
    return (
        f"waiting for up to {claim.ttl:g} seconds for a sign of life of another run of this library: "
        f"{describe_claim(claim)}; without one, this run takes its place"
    )
