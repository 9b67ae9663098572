"""The attention that a base is loaded with: every architecture loads for a GPU, and computes what it does on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from architectures import ARCHITECTURES, OTHERS, batch, tiny_model

from ttmoe import base as base_module
from ttmoe.architectures import ARCHITECTURES as LISTED
from ttmoe.attention import NAME
from ttmoe.base import Base, choose_attention, load_body

WITHOUT_FUSED = {"deberta", "deberta-v2", "gemma2", "mpnet", "xlnet", "gptj", "bloom"}


def test_every_listed_architecture_is_tried():
    assert LISTED.keys() <= {*ARCHITECTURES, *OTHERS}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
@torch.no_grad()
def test_a_base_loads_with_the_attention_of_a_gpu(name, tmp_path, monkeypatch):
    tiny_model(name).save_pretrained(tmp_path)
    load = partial(load_body, Base("folder", name, "", "", str(tmp_path), "float32", 16, "mean"))
    on_cpu = load()
    monkeypatch.setattr(base_module, "choose_attention", lambda device_type: choose_attention("cuda"))
    on_gpu = load()
    assert on_cpu.config._attn_implementation == "eager"
    assert on_gpu.config._attn_implementation == ("eager" if name in WITHOUT_FUSED else NAME)
    inputs = batch()
    real = inputs["attention_mask"].bool()  # what padding becomes does not matter
    states = [model(**inputs).last_hidden_state[real] for model in (on_gpu, on_cpu)]
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)
