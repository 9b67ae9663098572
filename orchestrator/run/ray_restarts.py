"""What happens when an embedded Ray ends by itself in the middle of work: it is started again, some times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from cluster.error import ClusterEndedError
from orchestrator.run.termination import terminated_by


@contextmanager
def interrupted_by_signal() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of any error after SIGTERM: systemd and Slurm send it to Ray's processes too."""
    try:
        yield
    except Exception as error:
        if terminated_by():
            raise KeyboardInterrupt from error
        raise


def handle_end_of_ray(
    error: ClusterEndedError,
    attempt: int,
    retries: int,
    what: str,
    console: Console,
    note: Callable[[str], Any] = lambda action: None,
) -> None:
    """Say that Ray ended and is started again; raise the error if it was started often enough.

    Args:
        error: The end.
        attempt: Number of sessions so far.
        retries: Number of sessions that may follow the first.
        what: What the user waits for, such as ``run``.
        console: Prints the message.
        note: Receives what is done about it.
    """
    gives_up = attempt > retries
    action = f"the {what} ended" if gives_up else f"Ray is started again, and the {what} goes on"
    note(action)
    if gives_up:
        raise error
    console.print(f"{error.what}; {action}", highlight=False, markup=False, soft_wrap=True)
