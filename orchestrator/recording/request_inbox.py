"""The inbox of a running stage: what users ask for its jobs, read from the tags of the run in a background thread."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from functools import partial

from orchestrator.pool.work_units import JobRequest
from orchestrator.registry import Registry
from orchestrator.registry.run_requests import RunRequest, requests_in

POLL_SECONDS = 5.0
_TOO_LATE = "the run trains no experts any more: repeat `ttmoe run` when it has ended"


class RequestInbox:
    """Requests to one run; a context manager. Requests that are open at its end are answered as too late.

    Args:
        registry: An open registry without retries; while the store does not respond, no request arrives.
        run_id: The run of ``ttmoe run``.
    """

    def __init__(self, registry: Registry, run_id: str) -> None:
        self._registry, self._run_id = registry, run_id
        self._arrived: queue.SimpleQueue[RunRequest] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[RunRequest] = queue.SimpleQueue()
        self._seen: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def __enter__(self) -> RequestInbox:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def take(self) -> list[JobRequest]:
        """Return the requests that arrived since the last call."""
        requests = []
        while not self._arrived.empty():
            request = self._arrived.get()
            requests.append(JobRequest(request.action, request.task, partial(self._answer, request)))
        return requests

    def _answer(self, request: RunRequest, text: str) -> None:
        self._answers.put(request.answered(f"{request.task} {text}"))

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._poll()
        for request in self._poll():
            self._answers.put(request.answered(_TOO_LATE))
        self._poll()

    def _poll(self) -> list[RunRequest]:
        """Write answers and read new requests; return those that are open."""
        open_requests: list[RunRequest] = []
        with suppress(Exception):  # the store does not respond: the next poll tries again
            answers = [self._answers.get() for _ in range(self._answers.qsize())]
            try:
                for request in answers:
                    self._registry.tag_run(self._run_id, request.as_tag())
            except Exception:
                for request in answers:
                    self._answers.put(request)
                raise
            answered = {request.token for request in answers}
            found = requests_in(self._registry.run_record(self._run_id).tags)
            open_requests = [each for each in found if not each.answer and each.token not in answered]
            for request in open_requests:
                if request.token not in self._seen:
                    self._seen.add(request.token)
                    self._arrived.put(request)
        return open_requests
