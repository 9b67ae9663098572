import gc
import weakref
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from workers.base import resident as module
from workers.base.resident import count_base_loads, load_resident_base
from workers.training.engines import engine


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No base is loaded. Releasing one would visit every object of a process that has run many tests."""
    monkeypatch.setattr(module, "_resident", None)
    monkeypatch.setattr(module, "_began_loading", False)


def test_one_base_is_loaded_once_wherever_it_lies(base):
    before = count_base_loads()
    first = load_resident_base(base, "cpu")
    assert load_resident_base(replace(base, folder="elsewhere", max_length=7), "cpu") is first
    assert count_base_loads() == before + 1
    assert not first.bank.training


def test_where_no_base_was_loaded_there_is_nothing_to_collect(base, monkeypatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append("collect"))
    module.release_resident_base()
    load_resident_base(base, "cpu")
    assert len(collected) == 1  # what loading left


def test_another_base_takes_the_place_of_the_first(base):
    before, first = count_base_loads(), weakref.ref(load_resident_base(base, "cpu").bank)
    other = load_resident_base(replace(base, dtype="bfloat16"), "cpu")
    gc.collect()
    assert first() is None  # the old one is gone, or two would have to fit
    assert other.bank.model.dtype == torch.bfloat16
    assert count_base_loads() == before + 2
    load_resident_base(base, "cpu")
    assert count_base_loads() == before + 3


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_a_base_is_gone_when_the_next_is_loaded_even_if_its_loading_failed(base, monkeypatch, fails):
    loaded, alive, load_body = [], [], engine.load_body

    def load(base, device):
        alive.append([model() is not None for model in loaded])
        model = load_body(base, device)
        model.itself = [model]  # modules and hooks reference each other
        loaded.append(weakref.ref(model))
        if fails and len(loaded) == 1:
            raise OSError("stale file handle")
        return model

    monkeypatch.setattr(engine, "load_body", load)
    monkeypatch.setattr(module, "_MANY_OBJECTS", 0)  # the base is left out of collections, whatever else there is
    with suppress(OSError):
        load_resident_base(base, "cpu")
    assert gc.isenabled()
    load_resident_base(replace(base, dtype="bfloat16"), "cpu")
    assert alive == [[], [False]]


@pytest.mark.parametrize("error", [pytest.param(None, marks=pytest.mark.thorough), ValueError, KeyboardInterrupt])
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


def test_a_collection_after_an_expert_skips_what_is_as_old_as_the_base(base, monkeypatch):
    """A cycle that the expert left is collected, among a small part of all objects."""
    bench = load_resident_base(base, "cpu")
    calls, collect = [], gc.collect
    monkeypatch.setattr(gc, "collect", lambda: calls.append((len(gc.get_objects()), collect())))
    trimmed: list[None] = []
    monkeypatch.setattr(module, "return_freed_memory", lambda: trimmed.append(None))
    with bench.in_use() as bank:
        cycle = [bank.add("a", AdapterSpec(rank=2), 2, torch.Generator())]
        cycle.append(cycle)
        left = weakref.ref(cycle[0])
        del cycle
    assert (left(), len(calls), len(trimmed)) == (None, 1, 1)
    assert calls[0][0] < gc.get_freeze_count() / 20


def test_an_expert_needs_no_collection_to_be_freed(base, monkeypatch):
    bench = load_resident_base(base, "cpu")
    monkeypatch.setattr(gc, "collect", lambda: 0)
    gc.disable()
    try:
        with bench.in_use() as bank:
            expert = bank.add("a", AdapterSpec(rank=2, dropout=0.1), 2, torch.Generator())
            inputs = {key: torch.ones(2, 3, dtype=torch.long) for key in ("input_ids", "attention_mask")}
            bank.train()
            bank(inputs, "a").sum().backward()
            freed = [weakref.ref(part) for part in (*expert.parameters(), *expert.modules())]
            assert any(core.grad is not None for core in expert.parameters())
            del expert
        assert [ref() for ref in freed] == [None] * len(freed)
    finally:
        gc.enable()
