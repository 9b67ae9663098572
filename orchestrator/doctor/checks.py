"""One line of ``ttmoe doctor``: what was checked, the verdict, and what to do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, ParamSpec

from cluster.error import ClusterError
from orchestrator.config.store_address import mask_secrets
from ttmoe.errors import InputError

P = ParamSpec("P")
Verdict = Literal["ok", "warning", "failed", "skipped"]
_BY_WEIGHT: tuple[Verdict, ...] = ("failed", "warning", "ok", "skipped")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        verdict: ``ok``; ``warning``: work is possible, but something is to be known; ``failed``; or ``skipped``.
        found: What was found.
        fix: What to do; empty if there is nothing to do.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def passed(found: str) -> Check:
    """Return a check that found no fault; ``checked`` names it."""
    return Check("", "ok", found)


def doubtful(found: str, fix: str) -> Check:
    """Return a check with a warning."""
    return Check("", "warning", found, fix)


def faulty(found: str, fix: str) -> Check:
    """Return a check that failed."""
    return Check("", "failed", found, fix)


def passed_over(found: str) -> Check:
    """Return a check that was not made, with the reason."""
    return Check("", "skipped", found)


def checked(name: str) -> Callable[[Callable[P, Check]], Callable[P, Check]]:
    """Return a decorator for a check: it gets a name, and an error that it raises is a check that failed."""

    def decorate(function: Callable[P, Check]) -> Callable[P, Check]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Check:
            try:
                found = function(*args, **kwargs)
            except (InputError, ClusterError) as error:
                where = f" ({error.where})" if error.where else ""
                found = faulty(f"{error.what}{where}", error.fix)
            except Exception as error:  # whatever is wrong with this machine is what the user asks for
                lines = str(error).strip().splitlines()
                found = faulty(f"{type(error).__name__}{f': {lines[0]}' if lines else ''}", "")
            return replace(found, name=name, found=mask_secrets(found.found), fix=mask_secrets(found.fix))

        return call

    return decorate


def merge_nodes(by_node: Mapping[str, Sequence[Check]]) -> list[Check]:
    """Return one check for each that was made on all nodes; where they differ, the nodes are named.

    Args:
        by_node: The same checks, in the same order, by the name of each node.
    """
    return [_merge(dict(zip(by_node, checks, strict=True))) for checks in zip(*by_node.values(), strict=True)]


def _merge(checks: Mapping[str, Check]) -> Check:
    worst = min(checks.values(), key=lambda check: _BY_WEIGHT.index(check.verdict))
    nodes: dict[str, list[str]] = {}
    for node, check in checks.items():
        nodes.setdefault(check.found, []).append(node)
    if len(nodes) == 1:
        return worst
    return replace(worst, found="; ".join(f"{', '.join(names)}: {found}" for found, names in nodes.items()))
