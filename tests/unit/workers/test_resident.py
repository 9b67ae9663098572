import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from workers.base import resident as module
from workers.base.resident import count_base_loads, load_resident_base


@pytest.fixture(autouse=True)
def fresh():
    module.release_resident_base()
    yield
    module.release_resident_base()


def test_one_base_is_loaded_once_wherever_it_lies(base):
    before = count_base_loads()
    first = load_resident_base(base, "cpu")
    assert load_resident_base(replace(base, folder="elsewhere", max_length=7), "cpu") is first
    assert count_base_loads() == before + 1
    assert not first.bank.training


def test_another_base_takes_the_place_of_the_first(base):
    before, first = count_base_loads(), weakref.ref(load_resident_base(base, "cpu").bank)
    other = load_resident_base(replace(base, dtype="bfloat16"), "cpu")
    gc.collect()
    assert first() is None  # the old one is gone, or two would have to fit
    assert other.bank.model.dtype == torch.bfloat16
    assert count_base_loads() == before + 2
    load_resident_base(base, "cpu")
    assert count_base_loads() == before + 3


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_experts_are_gone_whatever_happened(base, error):
    bench, raised = load_resident_base(base, "cpu"), pytest.raises(error) if error else nullcontext()
    with raised, bench.in_use() as bank:
        for name in ("a", "b"):
            bank.add(name, AdapterSpec(rank=2), 2, torch.Generator())
        bank.train()
        if error:
            raise error
    assert not bench.bank.experts
    assert not any(part.training for part in bench.bank.modules())
