"""Cut a trained expert to a smaller one: a tensor train of rank r holds those of every smaller rank.

Plain rounding loses most of the accuracy below a few ranks; weighted by what the adapted maps receive and by what the
loss feels of their outputs (``ttmoe.moments``), it needs no training step for most of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ttmoe.adapter import Adapter, AdapterSpec, Group
from ttmoe.bank import Bank
from ttmoe.errors import InputError
from ttmoe.expert import Expert
from ttmoe.methods import TensorTrain
from ttmoe.moments import Moments
from ttmoe.rounding import prepared_moments, round_update
from ttmoe.shapes import TTShape


def spec_of_rank(spec: AdapterSpec, rank: int) -> AdapterSpec:
    """Return the spec of a cut to ``rank``: the same sites, factors and scaling of the update.

    LoRA's scaling is alpha / rank, so its alpha falls with the rank; that of tensor trains is alpha itself.
    """
    shape = spec.shape
    shape = _factors(shape) if isinstance(shape, str) else {role: _factors(text) for role, text in shape.items()}
    alpha = spec.alpha * rank / spec.rank if spec.method == "lora" else spec.alpha
    return replace(spec, rank=rank, shape=shape, alpha=alpha)


def _factors(text: str) -> str:
    return text.split("@")[0]


def cut_expert(bank: Bank, name: str, spec: AdapterSpec, moments: Moments, *, sweeps: int = 6) -> Expert:
    """Return a smaller expert that answers as closely to an expert of the bank as its size allows.

    The head is copied. The expert is not in the bank yet; a further training starts as from new cores, because they are
    orthonormal in the same way.

    Args:
        bank: The bank. It stays as it is.
        name: The expert to cut, of any method.
        spec: Spec of the result: any method, rank and shape, but the sites of the expert.
        moments: The expert's moments.
        sweeps: As ``round_update`` takes them.

    Raises:
        InputError: If the sites differ, or the expert or its moments are not finite.
    """
    parent = bank.expert(name)
    child = bank.build_expert(spec, parent.head.out_features)
    with torch.inference_mode(False), torch.no_grad():
        for group, a, b in _updates(parent.adapter, child.adapter.groups, name):
            c, g = moments.inputs[group.key], moments.gradients[group.key]
            if not all(bool(tensor.isfinite().all()) for tensor in (a, b, c, g)):
                raise InputError(f"the cores or moments of {name!r} in {group.key} are not finite", where="cut",
                                 fix="train the expert again, or compute in a wider dtype")  # fmt: skip
            cores = _rounded_cores(group, a, b, c, g, spec.alpha, sweeps)
            for parameter, core in zip(child.adapter.cores[group.key].parameters(), cores, strict=True):
                parameter.copy_(core)
    child.head.load_state_dict(parent.head.state_dict())
    child.head.dropout = parent.head.dropout
    return child


def weighted_error(parent: Adapter, child: Adapter, moments: Moments) -> dict[str, Tensor]:
    """Return tr(G D C D') / tr(G W C W') of each site by the group's key, (sites,), for ``parent`` W and D = W - W'.

    Raises:
        InputError: If their sites differ.
    """
    errors = {}
    with torch.no_grad():
        own = dict(zip([group.key for group in child.groups], child.factors(), strict=True))
        for group, a, b in _updates(parent, child.groups, "the parent"):
            c, g = (prepared_moments(each[group.key]) for each in (moments.inputs, moments.gradients))
            child_a, child_b = own[group.key]
            change_a, change_b = torch.cat([a, child_a], 1).double(), torch.cat([b, -child_b], 2).double()
            whole = _weighted_square(a.double(), b.double(), c, g)
            errors[group.key] = _weighted_square(change_a, change_b, c, g) / whole
    return errors


def _weighted_square(a: Tensor, b: Tensor, c: Tensor, g: Tensor) -> Tensor:
    """Return tr(G W C W') of W = B A, (sites,)."""
    return ((b.mT @ g @ b) * (a @ c @ a.mT)).sum((-2, -1))


def _updates(parent: Adapter, groups: list[Group], name: str) -> list[tuple[Group, Tensor, Tensor]]:
    """Return each of ``groups`` with A and B of the parent's group on the same sites."""
    factors = {group.key: (group, *pair) for group, pair in zip(parent.groups, parent.factors(), strict=True)}
    paths = {key: [site.path for site in group.sites] for key, (group, _, _) in factors.items()}
    if paths != {group.key: [site.path for site in group.sites] for group in groups}:
        raise InputError(f"a cut of {name!r} has other sites than it", where="cut",
                         fix="keep its targets and layers; change the rank, the shape or the method")  # fmt: skip
    return [(group, *factors[group.key][1:]) for group in groups]


def _rounded_cores(group: Group, a: Tensor, b: Tensor, c: Tensor, g: Tensor, alpha: float, sweeps: int) -> list[Tensor]:
    """Return the cores that the group's method takes for the updates B A; its scaling is taken out of them."""
    method = group.method
    if isinstance(method, TensorTrain):
        shape = method.shape
    else:  # plain low rank is a train of one core on each side
        shape = TTShape((method.in_features,), (method.out_features,), method.rank)
    cores = round_update(a, b, c, g, shape, sweeps=sweeps)
    cores[shape.split] /= method.scaling(alpha) or 1.0  # with an alpha of zero all cores are the same
    if isinstance(method, TensorTrain):
        return cores
    missing = method.rank - shape.inner_rank
    return [F.pad(cores[0][:, 0].mT, (0, 0, 0, missing)), F.pad(cores[1][..., 0].mT, (0, missing))]
