"""A base that is larger than one GPU is divided among the GPUs of the machine, and answers as it does on one device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_causal
import torch
from accelerate import dispatch_model
from library import base_of, save_library
from test_generation import base_in, writers

import ttmoe.base
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import Choice
from ttmoe.errors import InputError
from ttmoe.generation import generate
from ttmoe.placement import BASE_SHARE, place_on_gpus, require_on_gpus, weight_bytes
from ttmoe.routed import RoutedModel

GB = 10**9


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that sets the free memory of each GPU, in GB."""

    def have(*free):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu] * GB, 80 * GB))

    return have


def test_a_base_is_divided_only_if_one_gpu_has_no_room(gpus):
    whole = {"device_map": {"": "cuda"}}
    gpus(80)
    assert place_on_gpus(100 * GB) == whole  # CUDA says how much is missing
    gpus(80, 80)
    assert place_on_gpus(int(80 * BASE_SHARE * GB)) == whole
    divided = place_on_gpus(int(80 * BASE_SHARE * GB) + 1)
    assert divided == {"device_map": "auto", "max_memory": dict.fromkeys((0, 1), int(80 * BASE_SHARE * GB))}
    gpus(10, 80)
    assert place_on_gpus(20 * GB)["device_map"] == "auto"
    with pytest.raises(InputError, match=r"takes 100.0 GB; the 2 GPUs have room for 76.5 GB"):
        place_on_gpus(100 * GB)


@pytest.mark.parametrize(("device", "divides"), [("cuda", True), ("cuda:1", False)])
def test_the_loading_asks_for_room_for_the_weights(base_folder, gpus, monkeypatch, device, divides):
    base, asked = base_of(base_folder), {}

    def from_pretrained(folder, **options):
        asked.update(options)
        raise RuntimeError("loaded")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", from_pretrained)
    weights = weight_bytes(ttmoe.base.empty_body(base), 4, "none")
    free = weights * 0.75 / GB / BASE_SHARE
    gpus(free, free)
    with pytest.raises(RuntimeError, match="loaded"):
        load_body(base, device)
    assert asked["device_map"] == ("auto" if divides else {"": device})
    assert ("max_memory" in asked) == divides


def test_layers_that_no_gpu_has_room_for_are_an_error(base_folder):
    model = load_body(base_of(base_folder))
    require_on_gpus(model)  # a whole base on a CPU is one
    model.hf_device_map = {"layers.0": 0, "layers.1": "cpu"}
    with pytest.raises(InputError, match=r"no room for layers\.1 of the base"):
        require_on_gpus(model)


def test_every_pass_finds_its_tensors_on_the_gpu_of_the_layer():
    script = Path(__file__).parents[2] / "divided_base.py"
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout)
    assert places.pop("trunk") == "card:1"  # the states stay where the layers above them are
    assert places.pop("pooled") == ["card:0"] * 5
    assert len(places) == 5
    assert set(places.values()) == {"card:0"}


def test_answers_through_the_hooks_of_a_divided_base_are_the_same(base_folder, tmp_path, monkeypatch):
    base = base_of(base_folder)
    folder = save_library(tmp_path, base)
    rows = ["red north1", ("cat", "dog"), Choice("cow", ("north", "blue")), "green1 east2", "dog south"]
    expected = RoutedModel.load(folder, base).predict(rows)
    body = dispatch_model(load_body(base), {"": "cpu"}, force_hooks=True)
    assert "forward" in vars(body)
    found = RoutedModel.load(folder, base, bank=Bank(body, base.pooling)).predict(rows)
    assert len({each.task for each in found}) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one.task, one.label) == (other.task, other.label)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)


def test_texts_generated_through_the_hooks_are_the_same(tmp_path):
    base = base_in(tiny_causal.save_causal_base(tmp_path))
    tokenizer, bank = load_tokenizer(base), writers(base)
    prompts, names = ["red north", "blue", "cat dog south"], ["one", "two", "one"]
    expected = generate(bank, tokenizer, prompts, names, 6, max_length=32)
    dispatch_model(bank.model, {"": "cpu"}, force_hooks=True)
    found = generate(bank, tokenizer, prompts, names, 6, max_length=32)
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.probability for each in found] == pytest.approx([each.probability for each in expected], rel=1e-4)
    assert any(each.text for each in expected)
