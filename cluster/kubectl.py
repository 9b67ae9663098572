"""Calls of ``kubectl``, and what to do when one fails."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from cluster.error import ClusterError

_REQUEST_SECONDS = 60
_PERMISSIONS = (
    "get, list, create, patch and delete rayjobs.ray.io and configmaps; get and list pods; get pods/log; "
    "create pods/exec"
)
_FIXES = {  # what to do, by what kubectl says; the first that fits
    r"context .*(does not exist|was not found)|no context exists": (
        "correct `context`; `kubectl config get-contexts` lists them"
    ),
    r"no matches for kind|have a resource type|could not find the requested resource": (
        "KubeRay is not installed there: ask for its operator, version 1.5.1 or newer, or correct `context`"
    ),
    r"unknown field|not declared in schema": "this KubeRay is too old: ask for version 1.5.1 or newer",
    r"exceeded quota": "ask for less in the cluster's profile, or wait until other work has ended",
    r"\([Ff]orbidden\)|is forbidden": f"ask for a role in the namespace that may {_PERMISSIONS}",
    r"namespaces? .*not found": "correct `namespace`",
    r"[Uu]nauthorized|must be logged in|getting credentials|provide credentials": "log in to the cluster again",
    r"refused|nable to connect|no such host|timeout|timed out|deadline": "see `kubectl cluster-info`",
}


class Kubectl:
    """``kubectl`` for one context and namespace.

    Args:
        context: Name of the context; None for the current one.
        namespace: Name of the namespace; None for that of the context.

    Attributes:
        place: Context and namespace, as text.
        command: The beginning of each call.

    Raises:
        ClusterError: If this machine has no ``kubectl``.
    """

    def __init__(self, context: str | None, namespace: str | None) -> None:
        where = "clusters, kind: kuberay"
        if shutil.which("kubectl") is None:
            raise ClusterError("this machine has no kubectl", where=where, fix="install it, with access to the cluster")
        self.place = f"Kubernetes, context {context or 'current'}, namespace {namespace or 'of the context'}"
        self.command = ["kubectl", *(["--context", context] if context else [])]
        self.command += ["--namespace", namespace] if namespace else []

    def call(self, *arguments: str, text: str | None = None, seconds: int = _REQUEST_SECONDS) -> str:
        """Return the output of a call.

        Args:
            arguments: Arguments of ``kubectl``.
            text: Its standard input.
            seconds: Limit of each request to the server; 0 for none.

        Raises:
            ClusterError: If it fails.
        """
        command = [*self.command, f"--request-timeout={seconds}s", *arguments]
        done = subprocess.run(command, input=text or "", capture_output=True, text=True, check=False)
        if done.returncode:
            raise self._error(arguments[0], done.stderr or done.stdout)
        return done.stdout

    def items(self, kind: str, selector: str) -> list[dict[str, Any]]:
        """Return the objects of a kind with these labels."""
        listed = json.loads(self.call("get", kind, "--selector", selector, "--output", "json"))
        return list(listed["items"])

    def lines(self, *arguments: str) -> Iterator[str]:
        """Yield the lines that a call prints, until it ends in any way.

        Raises:
            ClusterError: If it may not be made.
        """
        with subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                for line in process.stdout:
                    yield line.rstrip("\n")
                message = process.stderr.read()
            finally:
                process.terminate()
        if "orbidden" in message:
            raise self._error(arguments[0], message)

    def _error(self, verb: str, message: str) -> ClusterError:
        fix = next((fix for pattern, fix in _FIXES.items() if re.search(pattern, message)), "see `kubectl get events`")
        return ClusterError(f"kubectl {verb} failed: {' '.join(message.split())}", where=self.place, fix=fix)
