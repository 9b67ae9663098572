"""A training pass never makes the host wait for the device, whatever the architecture."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, OTHERS, tiny_model
from host_reads import META, NoWaiting, on_meta

from ttmoe import transfer
from ttmoe.adapter import AdapterSpec
from ttmoe.architectures import ARCHITECTURES as LISTED
from ttmoe.attention import use_right_padding
from ttmoe.bank import Bank
from ttmoe.transfer import tensor_on, to_device

# Its own forward reads the largest relative position on the host.
READING = {"deberta-v2"}


def bank_on_meta(name: str, patch: pytest.MonkeyPatch) -> Bank:
    model = tiny_model(name)
    if model._supports_sdpa:
        model.config._attn_implementation = "sdpa"
    use_right_padding(model)
    return Bank(on_meta(model, patch), "last")


@pytest.mark.parametrize("name", [name for name in (*ARCHITECTURES, *OTHERS) if name in LISTED.keys() - READING])
def test_a_pass_forward_and_backward(name, monkeypatch):
    bank, rates = bank_on_meta(name, monkeypatch), {"a": 0.1, "b": 0.1, "c": 0.2}
    for expert, rate in rates.items():
        bank.add(expert, AdapterSpec(rank=4, dropout=rate), 3, torch.Generator()).head.dropout = rate
    inputs = {"input_ids": torch.zeros(6, 7, dtype=torch.long), "attention_mask": torch.ones(6, 7, dtype=torch.long)}
    keys = torch.zeros(6, 2, dtype=torch.int32)
    bank.train()
    with NoWaiting() as seen:
        on_device = {key: to_device(value, META) for key, value in inputs.items()}
        for names, dropout_keys in (("a", keys), (list("aabbcc"), keys), (list("abbbbc"), None)):
            bank(on_device, names, dropout_keys=dropout_keys).sum().backward()
    assert seen.copies > 10  # the tokens, the keys of dropout, the numbers of the experts and of the heads


def test_what_makes_the_host_wait_is_found(monkeypatch):
    bank = bank_on_meta("llama", monkeypatch)
    scores = torch.zeros(3, device=META)
    with NoWaiting(), pytest.raises(AssertionError, match="makes the host wait"):
        torch.zeros(3).to(META)
    for read in (scores.tolist, scores.sum().item, scores.any().__bool__, scores.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    bank.model.config._attn_implementation = "sdpa"  # transformers' own asks for padding
    inputs = {"input_ids": torch.zeros(2, 7, dtype=torch.long, device=META)}
    with pytest.raises((RuntimeError, NotImplementedError)):
        bank.model(**inputs, attention_mask=torch.ones(2, 7, dtype=torch.long, device=META))


def test_values_reach_the_device_as_they_are():
    assert to_device(torch.arange(3), "cpu").tolist() == [0, 1, 2]
    assert tensor_on("cpu", [[1.5], [2.5]], torch.float64).dtype == torch.float64
    assert tensor_on(META, [1, 2]).device == META


@pytest.fixture
def kept(monkeypatch):
    """Constants as on a GPU, but in main memory."""
    monkeypatch.setattr(transfer, "tensor_on", lambda device, values, dtype=None: torch.tensor(values, dtype=dtype))
    transfer._kept_on.cache_clear()
    yield lambda *values: transfer.constant_on(torch.device("cuda"), values)
    transfer._kept_on.cache_clear()


def test_constants_are_kept_by_value_and_type(kept):
    """Python has 1 == 1.0: scales of experts came back as the places of others."""
    assert kept(1.0, 2.0).dtype == torch.float32
    assert kept(1, 2).dtype == torch.int64
    assert kept(1, 2) is kept(1, 2)


def test_constants_of_a_graph_live_as_long_as_it(kept):
    with transfer.constants_used() as used:
        first = kept(0, 0, 1)
    kept(7, 7)
    assert len(used) == 1
    assert used[0] is first
