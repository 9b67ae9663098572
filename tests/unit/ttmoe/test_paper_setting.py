"""The paper's setting on Llama-3.2-1B, planned on the meta device: the counts are the published ones."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from ttmoe.adapter import AdapterSpec, count_lora_parameters, count_parameters, plan_groups
from ttmoe.bank import Bank

PAPER = AdapterSpec(rank=5, alpha=16.0, init="paper", targets=("q", "v"),
                    shape={"q": "16x8x4x4|4x4x8x16", "v": "16x16x4x2|2x16x16"})  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    """Llama-3.2-1B without weights, from its published config."""
    config = LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                         num_attention_heads=32, num_key_value_heads=8, head_dim=64)  # fmt: skip
    with torch.device("meta"):
        return AutoModel.from_config(config)


def trained(model, spec):
    """The number of trainable parameters of the adapter."""
    with torch.device("meta"):
        bank = Bank(model, "last")
        expert = bank.build_expert(spec, 2)
        return sum(p.numel() for p in expert.adapter.parameters() if p.requires_grad)


def test_the_papers_adapter_has_33920_parameters(llama):
    groups = plan_groups(llama, PAPER)
    assert {group.role: group.method.parameters for group in groups} == {"q": 960, "v": 1160}
    assert [len(group.sites) for group in groups] == [16, 16]
    assert count_parameters(groups) == trained(llama, PAPER) == 33_920


def test_lora_of_rank_16_there_has_1703936(llama):
    lora = AdapterSpec(method="lora", rank=16, targets=("q", "v"))
    assert count_parameters(plan_groups(llama, lora)) == trained(llama, lora) == 1_703_936
    assert count_lora_parameters(plan_groups(llama, PAPER), rank=16) == 1_703_936


def test_the_base_is_not_trained(llama):
    bank = Bank(llama, "last")
    assert not any(p.requires_grad for p in bank.parameters())
    assert sum(p.numel() for p in bank.parameters()) == 1_235_814_400
