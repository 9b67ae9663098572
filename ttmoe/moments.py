"""Second moments of what an expert's adapted maps receive, and of the loss's gradients at what they return.

For small changes D of the maps the expected change of the loss is, to second order and with inputs and gradients taken
as independent, proportional to the sum of tr(G D C D') over the maps (as in K-FAC, Martens and Grosse 2015), with C the
second moments of a map's inputs and G those of the gradients at its outputs. ``ttmoe.cutting`` minimises it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ttmoe.bank import Bank
from ttmoe.targets import Site
from ttmoe.trunk import eval_mode

NOISE = 1e-5  # a token's gradient below this share of the largest of its row is taken for rounding


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens of all rows, stacked over the sites of each group, in fp32. Only their directions matter.

    Attributes:
        inputs: By the group's key, the sum of x x' over the inputs x of each site, (sites, in, in).
        gradients: By the group's key, the sum of g g' over the gradients g at each site's outputs, (sites, out, out).
    """

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class _Call:
    """One call of an adapted layer: what it received and returned."""

    path: str
    received: Tensor
    returned: Tensor


class MomentCollector:
    """Adds up the moments of an expert, loss by loss; made by ``collecting_moments``.

    Attributes:
        moments: The sums so far.
    """

    def __init__(self, bank: Bank, name: str) -> None:
        groups, device = bank.expert(name).adapter.groups, bank.device
        sizes = {group.key: (len(group.sites), group.method) for group in groups}
        self.moments = Moments(
            {key: torch.zeros(n, m.in_features, m.in_features, device=device) for key, (n, m) in sizes.items()},
            {key: torch.zeros(n, m.out_features, m.out_features, device=device) for key, (n, m) in sizes.items()},
        )
        self.sites_of: dict[str, list[tuple[str, int, Site]]] = {}
        for group in groups:
            for index, site in enumerate(group.sites):
                self.sites_of.setdefault(site.path, []).append((group.key, index, site))
        self._calls: list[_Call] = []

    def add(self, loss: Tensor) -> None:
        """Add the moments of the passes since the last call.

        Args:
            loss: A number that these passes gave: the sum of the rows' losses, so that every row has the same weight.
        """
        calls, self._calls = self._calls, []
        gradients = torch.autograd.grad(loss, [call.returned for call in calls], allow_unused=True)
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                for key, index, site in self.sites_of[call.path]:
                    self._add(key, index, call.received, gradient[..., site.rows])

    @torch.no_grad()
    def _add(self, key: str, index: int, received: Tensor, gradient: Tensor) -> None:
        # A token without a gradient has no effect on the loss, so what it receives is of no account: padding, or the
        # query of a causal model's first token, whose states are the largest of all.
        largest = gradient.abs().amax(dim=-1, keepdim=True)
        counts = largest > NOISE * largest.amax(dim=-2, keepdim=True)
        inputs = (received * counts).reshape(-1, received.shape[-1]).float()
        gradients = gradient.reshape(-1, gradient.shape[-1]).float()
        self.moments.inputs[key][index].addmm_(inputs.T, inputs)
        self.moments.gradients[key][index].addmm_(gradients.T, gradients)

    def record(self, path: str, received: Tensor, returned: Tensor) -> Tensor:
        """Keep what an adapted layer received and returned, and return what the layer is to return instead."""
        # Where nothing below requires gradients, they begin here. Later operations in place must not reach it.
        self._calls.append(_Call(path, received.detach(), returned.requires_grad_()))
        return returned.clone()


@contextmanager
def collecting_moments(bank: Bank, name: str) -> Iterator[MomentCollector]:
    """Yield a collector that sees every pass through the bank in this context; all passes must be the named expert's.

    The bank is in eval mode meanwhile, so nothing is dropped. No parameter receives a gradient.

    Args:
        bank: The bank.
        name: The expert.

    Raises:
        InputError: If the expert is not loaded.
    """
    collector = MomentCollector(bank, name)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(bank))
        for path in collector.sites_of:

            def record(layer: nn.Module, args: tuple[Any, ...], output: Tensor, path: str = path) -> Tensor:
                return collector.record(path, args[0], output)

            stack.callback(bank.model.get_submodule(path).register_forward_hook(record).remove)
        stack.enter_context(torch.enable_grad())
        yield collector
