"""Where claims are kept: each is a tag of the library's experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from orchestrator.registry.availability import is_unavailable
from orchestrator.registry.claims import Claim
from orchestrator.registry.retrying import RetryingStore, retried
from orchestrator.registry.store import TAG, Store, ignore_missing

CLAIM_TAG = f"{TAG}lease."
_REMOVED = "removed"  # text of a claim that is not there any more, on a server that cannot delete it


class ClaimBoard(Protocol):
    """Where commands write their claims and read those of others. A read sees every write that was answered before."""

    def read(self) -> dict[str, Claim]:
        """Return all claims by token."""

    def put(self, claim: Claim) -> None:
        """Write a claim, or write it again."""

    def remove(self, token: str) -> None:
        """Remove a claim, if it is there."""


@dataclass(frozen=True)
class TagBoard:
    """The claims of a library in its experiment, which is created if missing."""

    store: RetryingStore
    library: str

    def read(self) -> dict[str, Claim]:
        """Return all claims by token."""
        return _claims(retried(Store.experiment)(self.store, self.library))

    def put(self, claim: Claim) -> None:
        """Write a claim, or write it again."""
        retried(_put)(self.store, self.library, claim)

    def remove(self, token: str) -> None:
        """Remove a claim, if it is there."""
        retried(_remove)(self.store, self.library, token)


def lease_holder(store: Store, library: str) -> Claim | None:
    """Return the claim that was the last to prevail, or None if there is none. Nothing is written."""
    experiment = store.find_experiment(library)
    held = [claim for claim in _claims(experiment).values() if claim.is_held] if experiment else []
    return max(held, key=lambda claim: claim.since, default=None)


def _claims(experiment: Experiment) -> dict[str, Claim]:
    texts = {key.removeprefix(CLAIM_TAG): text for key, text in experiment.tags.items() if key.startswith(CLAIM_TAG)}
    return {token: Claim.from_text(token, text) for token, text in texts.items() if text != _REMOVED}


def _put(store: Store, library: str, claim: Claim) -> None:
    store.client.set_experiment_tag(store.experiment_id(library), CLAIM_TAG + claim.token, claim.to_text())


def _remove(store: Store, library: str, token: str) -> None:
    experiment = store.experiment_id(library)
    try:
        ignore_missing(lambda: store.client.delete_experiment_tag(experiment, CLAIM_TAG + token))
    except MlflowException as error:  # early versions of MLflow's server have no such endpoint
        if is_unavailable(error):
            raise
        store.client.set_experiment_tag(experiment, CLAIM_TAG + token, _REMOVED)
