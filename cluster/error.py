"""Exceptions of this package whose message is meant for the user, as those of ``ttmoe.errors`` are."""

from __future__ import annotations


class ClusterError(Exception):
    """A cluster, or a job on it, cannot be used as asked. No work was started.

    Args:
        what: What is wrong.
        where: The cluster, the job or the setting.
        fix: What to do.

    Attributes:
        code: Exit code of the command line.
    """

    code = 2

    def __init__(self, what: str, where: str, fix: str) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  {self.fix}"


class ClusterEndedError(ClusterError):
    """The cluster that this process had started has ended by itself, and its work with it."""

    code = 1


class ClusterStartError(ClusterError):
    """The cluster that this process was starting has ended before it was ready."""

    code = 1
