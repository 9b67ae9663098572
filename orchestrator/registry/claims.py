"""Claims to a library: what a command writes into the store to work on it alone, and who of several holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from orchestrator.registry.process_identity import Presence, ProcessIdentity

Judgement = Literal["holds", "lapsed", "unclear"]


@dataclass(frozen=True)
class Claim:
    """A command's claim to a library.

    Attributes:
        token: Identifies the claim. It is used once: a claim that was withdrawn is never written again.
        holder: The process of the command.
        command: The command, such as ``ttmoe run``.
        is_held: Whether the claim has prevailed; otherwise it is being compared with others.
        since: When it was made, in seconds since the epoch on the holder's clock.
        seen: Last sign of life of the holder, likewise.
        ttl: Seconds without a sign of life after which it lapses.
        over: Tokens of the lapsed claims that it took over.
    """

    token: str
    holder: ProcessIdentity
    command: str
    is_held: bool
    since: float
    seen: float
    ttl: float
    over: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the claim as JSON, without the token."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "token"})

    @classmethod
    def from_text(cls, token: str, text: str) -> Claim:
        """Return the claim in a text of ``to_text``; what a later version adds to it is ignored.

        A text that is no claim, such as an edited one, gives a claim of nobody that has lapsed: it stops no command,
        and the next that takes the lease removes it.
        """
        try:
            content = json.loads(text)
            holder = content["holder"]
            return cls(
                token,
                ProcessIdentity(
                    str(holder["host"]), str(holder["machine"]), int(holder["process"]), str(holder["started"])
                ),
                str(content["command"]),
                bool(content["is_held"]),
                float(content["since"]),
                float(content["seen"]),
                float(content["ttl"]),
                tuple(content["over"]),
            )
        except (ValueError, TypeError, LookupError, OverflowError):
            return cls(token, ProcessIdentity("", "", 0, ""), "", is_held=False, since=0.0, seen=0.0, ttl=0.0)


@dataclass(frozen=True)
class Sighting:
    """A claim as another command sees it over time.

    Attributes:
        claim: The claim.
        since: When it was first read as it is, on the reader's clock in seconds.
        changed: Whether it was read before, and was different.
    """

    claim: Claim
    since: float
    changed: bool = False


def observe(before: Mapping[str, Sighting], claims: Mapping[str, Claim], now: float) -> dict[str, Sighting]:
    """Return what is known of all claims after a read.

    Args:
        before: What was known before, by token. Claims that are not in the store any more remain, to be recognised.
        claims: The claims in the store.
        now: The time of the read.
    """
    sightings = dict(before)
    for token, claim in claims.items():
        if token not in before or before[token].claim != claim:
            sightings[token] = Sighting(claim, now, changed=token in before)
    return sightings


def judge(sighting: Sighting, presence: Presence, now: float) -> Judgement:
    """Decide whether a claim holds. No clock of another host is read.

    Args:
        sighting: The claim as it was seen up to now.
        presence: Whether its process runs, if that can be seen from here.
        now: Time on the clock of the sighting.

    Returns:
        ``holds``, ``lapsed``, or ``unclear``: then the claim has to be watched.
    """
    is_silent = now - sighting.since >= sighting.claim.ttl
    if presence == "gone":
        return "lapsed"
    if presence == "running":  # however long it has been silent: it may be stopped, or the store was not available
        return "holds" if sighting.claim.is_held or is_silent else "unclear"
    if is_silent:
        return "lapsed"
    return "holds" if sighting.claim.is_held and sighting.changed else "unclear"
