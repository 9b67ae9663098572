"""Expert files: saving and loading. A damaged file raises an error that names the damage; the bank is unchanged."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from architectures import batch, stir, tiny_bank
from safetensors.torch import load, save

from ttmoe.adapter import AdapterSpec
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, read_manifest, save_expert

SPEC = AdapterSpec(rank=3, alpha=2.0, targets=("q", "down"), first_layer=1, shape={"q": "8x4|4x8"}, dropout=0.1)
BASE = {"id": "tiny", "revision": "r1", "digest": "d" * 64}


def saved(folder, spec=SPEC, name="colours", **settings):
    bank = tiny_bank(**settings)
    expert = stir(bank.add(name, spec, 3, torch.Generator()))
    made = save_expert(expert, folder, task=name, kind="classify", labels=("red", "green", "blue"), base=BASE,
                       spec_hash="s" * 64, metrics={"test.accuracy": 0.5})  # fmt: skip
    return bank, made


@pytest.mark.parametrize("spec", [SPEC, AdapterSpec(method="lora", rank=2, targets=(".*_proj",)),
                                  AdapterSpec(init="paper", rank=4)])  # fmt: skip
def test_round_trip(tmp_path, spec):
    bank, made = saved(tmp_path, spec)
    other = tiny_bank()
    found = load_expert(other, tmp_path, BASE["digest"])
    assert found == made == read_manifest(tmp_path)
    assert (found.labels, found.classes, found.adapter) == (("red", "green", "blue"), 3, spec)
    with torch.no_grad():
        assert torch.equal(other(batch(), "colours"), bank(batch(), "colours"))
    assert not any(p.requires_grad for p in other.parameters())
    load_expert(other, tmp_path, BASE["digest"], name="again")
    assert list(other.experts) == ["colours", "again"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expert.json", "expert.safetensors"]


def test_loading_draws_no_random_numbers(tmp_path):
    saved(tmp_path)
    bank, before = tiny_bank(), torch.random.get_rng_state()
    load_expert(bank, tmp_path, BASE["digest"])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("targets", [("q",), ("q", "k", "v", "o", "up", "gate", "down")])
@pytest.mark.parametrize("method", ["tt", "lora"])
def test_size(tmp_path, targets, method):
    bank, _ = saved(tmp_path, AdapterSpec(method=method, rank=1, targets=targets), num_hidden_layers=24)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size <= 1.1 * sum(4 * p.numel() for p in bank.experts.parameters()) + 8192


def edit(folder, change):
    path = folder / "expert.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def rewrite(folder, change):
    """Change the weights and correct their digest."""
    weights = load((folder / "expert.safetensors").read_bytes())
    change(weights)
    replace_data(folder, save(weights))


def replace_data(folder, data):
    (folder / "expert.safetensors").write_bytes(data)
    edit(folder, lambda m: m.update(weights_digest=hashlib.sha256(data).hexdigest()))


def alter(folder, at):
    path = folder / "expert.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])


CORE = "adapter.cores.q_32x32.0"
DAMAGES = {
    "weights cut": (lambda f: cut(f, "expert.safetensors"), "altered or truncated"),
    "last byte": (lambda f: alter(f, -1), "altered or truncated"),
    "first byte": (lambda f: alter(f, 0), "altered or truncated"),
    "no weights": (lambda f: (f / "expert.safetensors").unlink(), "cannot read the weights"),
    "no manifest": (lambda f: (f / "expert.json").unlink(), "cannot read the expert manifest"),
    "no folder": (shutil.rmtree, "cannot read the expert manifest"),
    "manifest cut": (lambda f: cut(f, "expert.json"), "cannot read the expert manifest"),
    "not an object": (lambda f: (f / "expert.json").write_text("[1]"), "cannot read the expert manifest"),
    "not text": (lambda f: (f / "expert.json").write_bytes(b"\xff\xfe\x00"), "cannot read the expert manifest"),
    "other base": (lambda f: edit(f, lambda m: m["base"].update(digest="e" * 64)), "trained on base tiny .eeeee"),
    "no base": (lambda f: edit(f, lambda m: m.update(base={})), "cannot read the expert manifest .'digest'"),
    "format": (lambda f: edit(f, lambda m: m.update(format=2)), "has format 2, expected 1"),
    "no format": (lambda f: edit(f, lambda m: m.pop("format")), "'format'"),
    "new field": (lambda f: edit(f, lambda m: m.update(colour=1)), "colour"),
    "lost field": (lambda f: edit(f, lambda m: m.pop("spec_hash")), "spec_hash"),
    "adapter field": (lambda f: edit(f, lambda m: m["adapter"].update(twist=2)), "twist"),
    "adapter type": (lambda f: edit(f, lambda m: m["adapter"].update(rank="many")), "many' is not a shape"),
    "adapter alpha": (lambda f: edit(f, lambda m: m["adapter"].update(alpha="x")), "alpha cannot be 'x'"),
    "adapter layer": (lambda f: edit(f, lambda m: m["adapter"].update(first_layer="x")), "cannot build the adapter"),
    "target": (lambda f: edit(f, lambda m: m["adapter"].update(targets=["rotor"])), "'rotor' matches no linear map"),
    "layers": (lambda f: edit(f, lambda m: m["adapter"].update(last_layer=9)), "layers 1 to 9"),
    "rank": (lambda f: edit(f, lambda m: m["adapter"].update(rank=2)), "the cores do not match"),
    "method": (lambda f: edit(f, lambda m: m["adapter"].update(method="lora")), "the cores do not match"),
    "classes": (lambda f: edit(f, lambda m: m["labels"].pop()), "of another shape: head.bias, head.weight"),
    "core shape": (lambda f: rewrite(f, lambda w: w.update({CORE: w[CORE].flatten(1)})), f"another shape: {CORE}"),
    "core lost": (lambda f: rewrite(f, lambda w: w.pop(CORE)), f"missing, .*: {CORE}"),
    "core unknown": (lambda f: rewrite(f, lambda w: w.update(extra=w[CORE].clone())), "shape: extra"),
    "NaN": (lambda f: rewrite(f, lambda w: w[CORE].view(-1)[5:6].fill_(torch.nan)), f"not finite: {CORE}"),
    "infinity": (lambda f: rewrite(f, lambda w: w["head.bias"].fill_(torch.inf)), "not finite: head.bias"),
    "not safetensors": (lambda f: replace_data(f, b"\x80\x04pickle me"), "not a safetensors file"),
    "core type": (lambda f: rewrite(f, lambda w: w.update({CORE: w[CORE].half()})), f"not fp32: {CORE}"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_raises_and_leaves_the_bank_unchanged(tmp_path, damage):
    folder = tmp_path / "expert"
    saved(folder)
    bank = tiny_bank()
    stir(bank.add("resident", AdapterSpec(rank=2, targets=("v",)), 2, torch.Generator()))
    modules, scores = list(bank.named_modules()), bank(batch(), "resident")
    cause, named = DAMAGES[damage]
    cause(folder)
    with pytest.raises(InputError, match=named) as caught:
        load_expert(bank, folder, BASE["digest"])
    assert caught.value.where.startswith(str(folder))
    assert list(bank.named_modules()) == modules
    assert torch.equal(bank(batch(), "resident"), scores)


def test_a_name_in_use(tmp_path):
    bank, _ = saved(tmp_path)
    before = bank.experts["colours"]
    with pytest.raises(InputError, match="'colours' is already loaded"):
        load_expert(bank, tmp_path, BASE["digest"])
    assert bank.experts["colours"] is before
