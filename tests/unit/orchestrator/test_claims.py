"""Claims as texts: those of other versions, and texts that are none."""

from __future__ import annotations

import json

import pytest

from orchestrator.registry.claiming import Claiming
from orchestrator.registry.claims import Claim
from orchestrator.registry.process_identity import ProcessIdentity, this_process

CLAIM = Claim("t", ProcessIdentity("host", "machine", 7, "1"), "ttmoe run", True, 1.0, 2.0, 90.0, ("a",))


class Board:
    """A board of texts whose server may not remove any."""

    def __init__(self, removes: bool = True, **texts: str) -> None:
        self.texts, self.removes = texts, removes

    def read(self):
        return {token: Claim.from_text(token, text) for token, text in self.texts.items()}

    def put(self, claim):
        self.texts[claim.token] = claim.to_text()

    def remove(self, token):
        if not self.removes:
            raise RuntimeError("no such endpoint")
        self.texts.pop(token, None)


def take(board):
    return Claiming(board, "ttmoe run", "", pytest.fail, sleep=pytest.fail).prevail()[0]


def test_what_a_later_version_adds_is_ignored():
    content = json.loads(CLAIM.to_text())
    content |= {"later": 1, "holder": content["holder"] | {"later": 1}}
    assert Claim.from_text("t", json.dumps(content)) == CLAIM


@pytest.mark.parametrize(
    "text", ["", "edited", "null", "[]", "{}", '{"holder": 1}', CLAIM.to_text().replace("90.0", '"long"')]
)
def test_a_text_that_is_no_claim_holds_nothing_and_is_removed(text):
    board = Board(x=text)
    claim = take(board)
    assert not Claim.from_text("x", text).is_held
    assert (claim.over, list(board.texts)) == (("x",), [claim.token])


def test_the_lease_is_taken_where_lapsed_claims_cannot_be_removed():
    gone = Claim("x", this_process(), "ttmoe run", True, 1.0, 2.0, 90.0)  # a claim that this process does not hold
    board = Board(removes=False, x=gone.to_text())
    claim = take(board)
    assert claim.is_held
    assert (claim.over, set(board.texts)) == (("x",), {"x", claim.token})
