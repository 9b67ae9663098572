"""How processes meet and share work, on machines that are not here: the calls of torch are scripted."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from workers.training.engines import process_group
from workers.training.engines.engine import SINGLE_PROCESS, share, sum_gradients


@pytest.mark.parametrize(("gpus", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_a_process_speaks_by_the_interface_that_the_others_reach(monkeypatch, gpus, backend):
    joined = {}
    address = SimpleNamespace(address="10.1.2.3")
    monkeypatch.setattr(
        psutil, "net_if_addrs", lambda: {"lo": [SimpleNamespace(address="127.0.0.1")], "eth7": [address]}
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(process_group.dist, "init_process_group", lambda name, **more: joined.update(name=name, **more))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    process_group.join_group("10.1.2.9:4321", 1, 4, "10.1.2.3")
    assert (joined["name"], joined["init_method"], joined["rank"], joined["world_size"]) == (
        backend, "tcp://10.1.2.9:4321", 1, 4)  # fmt: skip
    assert joined["timeout"].total_seconds() > 3600 * 12  # the pool watches, not torch
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    assert [process_group.os.environ[name] for name in names] == ["eth7", "eth7", "1", "4", "0"]


@pytest.mark.parametrize(("parts", "size"), [(7, 1), (7, 2), (6, 2), (7, 3), (1, 4), (0, 2)])
def test_work_is_shared_in_equal_numbers_and_each_part_counts_once(parts, size):
    shares = [share(SimpleNamespace(rank=rank, size=size), list(range(parts))) for rank in range(size)]
    assert len({len(each) for each in shares}) == 1
    assert sorted(part for each in shares for part, counts in each if counts) == list(range(parts))
    if parts:
        assert shares[0][-1] == (parts - 1, True)  # process 0 verifies on the last part
    assert share(SINGLE_PROCESS, list(range(parts))) == [(part, True) for part in range(parts)]


def test_a_missing_gradient_counts_as_zero():
    sums = []
    engine = SimpleNamespace(sum=lambda tensors: sums.extend(tensor.clone() for tensor in tensors))
    with_one, without = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    with_one.grad = torch.full((2,), 5.0)
    sum_gradients(engine, [with_one, without], [torch.tensor(7.0)])
    assert [each.tolist() for each in sums] == [[5, 5], [0, 0, 0], 7]
    assert without.grad.tolist() == [0, 0, 0]
