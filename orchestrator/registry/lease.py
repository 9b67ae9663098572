"""The lease of a library: one command at a time works on it, wherever commands run that share the store.

The holder renews its claim in a thread. A command on another host takes the lease over when it saw no renewal for the
claim's time to live; one on this host when the holder's process is gone. A holder that was cut off from the store, or
suspended, asks before its next request whether it still holds the lease, and ends if not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from mlflow.tracking import MlflowClient

from orchestrator.config.store_address import mask_uri
from orchestrator.registry.artifact_folders import write_below_root
from orchestrator.registry.claim_tags import ClaimBoard, TagBoard
from orchestrator.registry.claiming import Claiming, describe_claim, elapsed, own_tokens
from orchestrator.registry.claims import Claim
from orchestrator.registry.interrupting import interrupt_main_thread
from orchestrator.registry.retrying import RetryingStore
from orchestrator.registry.store import single_requests
from ttmoe.errors import WorkFailedError

S = TypeVar("S", bound=RetryingStore)
_RENEWALS = 4  # within a time to live
_LONGEST_RENEWAL = 10.0  # seconds that the end of a command waits for one


class Lease:
    """A claim that is held, and its renewal. Its methods are safe to call from several threads.

    Attributes:
        lost: The error that ends the command after another one took the lease over; None before.
    """

    def __init__(self, board: ClaimBoard, claim: Claim, at: float, where: str) -> None:
        """Keep a claim.

        Args:
            board: Where the claims are, without retries.
            claim: The claim, which is held.
            at: Time on the clock ``elapsed`` at which it was last known to be.
            where: The store, for errors.
        """
        self.lost: WorkFailedError | None = None
        self._board, self._claim, self._confirmed, self._where = board, claim, at, where
        self._renewing, self._ending = threading.Lock(), threading.Lock()
        self._released = threading.Event()
        self._owner = threading.get_ident()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def keep(self) -> None:
        """Renew the claim from now on, and interrupt this thread, if it is the main one, when the lease is lost."""
        self._thread.start()

    def confirm(self) -> None:
        """Return if the lease is held. If it may have been taken over meanwhile, ask the store.

        Raises:
            WorkFailedError: Another command took the lease over.
        """
        if self.lost:
            raise self.lost
        if elapsed() - self._confirmed > self._claim.ttl / 2:
            self.renew()

    def renew(self) -> None:
        """Write a sign of life, unless another command took the lease over: then raise WorkFailedError."""
        with self._renewing:
            if self._released.is_set():
                return
            began, claims = elapsed(), self._board.read()
            token = self._claim.token
            taker = next((claim for claim in claims.values() if token in claim.over), None)
            if taker or token not in claims:
                self.lost = self.lost or _lost_error(taker, self._where)
                raise self.lost
            self._claim = replace(self._claim, seen=time.time())
            self._board.put(self._claim)
            self._confirmed = began

    def release(self) -> None:
        """Stop the renewal and remove the claim. If the store does not respond, the claim lapses."""
        with self._ending:
            self._released.set()
        own_tokens.discard(self._claim.token)
        is_fork = os.getpid() != self._claim.holder.process  # the holder goes on
        if is_fork or self.lost or not self._renewing.acquire(timeout=_LONGEST_RENEWAL):
            return
        try:
            with suppress(Exception), single_requests():
                self._board.remove(self._claim.token)
        finally:
            self._renewing.release()

    def _keep(self) -> None:
        while not self._released.wait(self._claim.ttl / _RENEWALS):
            with suppress(Exception):  # the next renewal, or ``confirm``, tries again
                self.renew()
            if self.lost:
                self._interrupt()
                return

    def _interrupt(self) -> None:
        with self._ending:
            if not self._released.is_set():
                interrupt_main_thread(self._owner)


class GuardedClient:
    """MLflow's client, with a function that is called before each request; it may raise an error."""

    def __init__(self, client: MlflowClient, guard: Callable[[], Any]) -> None:
        self._client, self._guard = client, guard

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value):
            return value

        @wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._guard()
            return value(*args, **kwargs)

        return call


@contextmanager
def hold_lease(store: S, library: str, command: str, notify: Callable[[str], Any]) -> Iterator[S]:
    """Hold the lease of a library within the context. Its runs write below the present storage folder.

    Args:
        store: An open store. The library's experiment is created if missing.
        library: Name of the library.
        command: This command, such as ``ttmoe run``, for the messages of others.
        notify: Receives a message when this command waits to see whether another one still runs.

    Yields:
        The store, with requests that fail after another command took the lease over.

    Raises:
        InputError: Another command holds the lease.
        WorkFailedError: Another command took the lease over.
    """
    where = f"library {library} in {mask_uri(store.uri)}"
    lease = None
    try:
        try:
            claim, at = Claiming(TagBoard(store, library), command, where, notify).prevail()
            lease = Lease(TagBoard(replace(store, patience=0.0), library), claim, at, where)
            lease.keep()
            write_below_root(store, library)
            yield replace(store, client=cast(MlflowClient, GuardedClient(store.client, lease.confirm)))
        finally:
            if lease:
                lease.release()
    except (Exception, KeyboardInterrupt):
        if lease is None or lease.lost is None:
            raise
        raise lease.lost from None


def _lost_error(taker: Claim | None, where: str) -> WorkFailedError:
    who = describe_claim(taker) if taker else "a command that has ended"
    return WorkFailedError(
        f"another run took this library over, because this one gave no sign of life: {who}",
        where=where,
        fix="repeat the command when the other has ended: finished experts are kept",
    )
