"""Bases whose weights are quantised: what is computed and trained on them is what their dequantised weights give."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from architectures import batch, stir, tiny_model

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, contains_base, digest_folder, load_body, quantised_digest
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, save_expert
from ttmoe.placement import weight_bytes
from ttmoe.quantization import count_numbers, float_dtype, is_quantised
from workers.training.base_sizes import BaseSizes
from workers.training.memory import estimate_job_memory
from workers.training.settings import TrainSettings

SPEC = AdapterSpec(rank=4, alpha=2.0, targets=("q", "v"))
# LLM.int8 quantises the inputs of products too, to one byte.
CLOSE = {"nf4": 1e-4, "int8": 3e-2}


def base_of(folder, quantize, name="llama", dtype="float32"):
    if not (folder / "config.json").exists():
        tiny_model(name, hidden_size=64, intermediate_size=128).save_pretrained(folder)
    digest = quantised_digest(digest_folder(folder), quantize)
    return Base("folder", name, "", digest, str(folder), dtype, 64, "last")


def dequantised(weight):
    import bitsandbytes as bnb

    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB).float()


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "bert"])
def test_an_expert_trains_as_on_the_dequantised_weights(tmp_path, name, quantize):
    base = base_of(tmp_path, quantize, name)
    quantised, plain = load_body(base), load_body(replace(base, digest=digest_folder(tmp_path)))
    maps = {path: module.weight for path, module in quantised.named_modules()
            if isinstance(module, torch.nn.Linear) and is_quantised(module.weight)}  # fmt: skip
    assert len(maps) >= 3 * 6  # all maps of three layers
    for path, weight in maps.items():
        plain.get_submodule(path).weight.data = dequantised(weight)
    found = []
    for model in (quantised, plain):
        bank = Bank(model, "last")
        expert = stir(bank.add("e", SPEC, 3, torch.Generator()))
        with torch.no_grad():
            bank.eval()(batch(), "e")  # bitsandbytes would pack the weights for inference
        bank.train()
        scores = bank(batch(), "e")
        scores.logsumexp(-1).sum().backward()
        found.append((scores.detach(), [p.grad for p in expert.parameters()]))
    (scores, grads), (wanted, wanted_grads) = found
    assert scores.dtype == torch.float32
    scale = wanted.abs().max()
    assert (scores - wanted).abs().max() < CLOSE[quantize] * scale
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert (grad - wanted_grad).norm() <= 10 * CLOSE[quantize] * wanted_grad.norm() + 1e-6


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_the_forecast_has_the_bytes_of_the_quantised_weights(tmp_path, quantize):
    base = base_of(tmp_path, quantize, dtype="bfloat16")
    plain = load_body(replace(base, digest=digest_folder(tmp_path)))
    sizes = BaseSizes.of(plain, base, "cpu")
    model = load_body(base)
    taken = sum(p.numel() * p.element_size() for p in model.parameters()) + sum(b.numel() * 4 for b in model.buffers())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        taken += state.absmax.numel() * 4 if state else 0
    largest = 2 * 64 * 128
    assert weight_bytes(plain, sizes.dtype_bytes, quantize) == pytest.approx(taken + largest, rel=0.02)
    # A job asks again when its base is loaded and its experts are in it.
    bank = Bank(model, "last")
    bank.add("e", SPEC, 3, torch.Generator())
    assert weight_bytes(bank.model, sizes.dtype_bytes, quantize) == pytest.approx(taken, rel=0.1)
    assert sum(map(count_numbers, model.parameters())) == sum(p.numel() for p in plain.parameters())
    estimates = [estimate_job_memory(plain, replace(base, digest=digest), SPEC, 3, TrainSettings()).base
                 for digest in (base.digest, digest_folder(tmp_path))]  # fmt: skip
    assert estimates[0] < estimates[1]


def test_a_quantised_base_is_another_base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    bases = {quantize: base_of(folder, quantize) for quantize in ("none", "int8", "nf4")}
    assert len({base.digest for base in bases.values()}) == 3
    for quantize, base in bases.items():
        assert base.quantize == quantize
        assert contains_base(folder, base.digest)
        assert Base(**base.record(), folder=str(folder)) == base
    bank = Bank(load_body(bases["nf4"]), "last")
    expert = stir(bank.add("e", SPEC, 3, torch.Generator()))
    save_expert(expert, tmp_path / "expert", task="e", kind="classify", labels=("a", "b", "c"),
                base=bases["nf4"].record(), spec_hash="", metrics={})  # fmt: skip
    bank.remove("e")
    assert load_expert(bank, tmp_path / "expert", bases["nf4"].digest).base["digest"].startswith("nf4:")
    for quantize in ("none", "int8"):
        other = Bank(load_body(bases[quantize]), "last")
        with pytest.raises(InputError, match=r"trained on base llama \(nf4:"):
            load_expert(other, tmp_path / "expert", bases[quantize].digest)
    with pytest.raises(InputError, match="the base is quantised, so no expert can be merged"):
        bank.merge("e")
    assert float_dtype(bank.model) == torch.float32


def test_without_bitsandbytes_it_says_what_to_install(tmp_path, monkeypatch):
    base = base_of(tmp_path, "nf4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"nf4 needs bitsandbytes") as error:
        load_body(base)
    assert "pip install 'ttmoe[quantize]'" in error.value.fix
