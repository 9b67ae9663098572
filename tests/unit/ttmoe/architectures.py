"""Tiny models of every tested architecture, built from their configs with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ttmoe.bank import Bank, Expert

torch.set_num_threads(1)

VOCABULARY, LAYERS = 50, 3
_DECODER: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_ENCODER: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
    max_position_embeddings=66, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model class's prefix, its config's settings, whether it has a gate, and the width of keys and values.

    The last two are not filled in for ``OTHERS``.
    """

    prefix: str
    settings: dict[str, Any]
    gated: bool = False
    narrow: int = 32


ARCHITECTURES = {
    "llama": Architecture("Llama", _DECODER, True, 16),
    "mistral": Architecture("Mistral", _DECODER, True, 16),
    "qwen3": Architecture("Qwen3", {**_DECODER, "head_dim": 8}, True, 16),
    "gemma3_text": Architecture("Gemma3Text", {**_DECODER, "head_dim": 8, "sliding_window": 4}, True, 16),
    "phi3": Architecture("Phi3", _DECODER, True, 16),
    "gpt2": Architecture("GPT2", dict(vocab_size=VOCABULARY, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64,
                                      n_inner=48, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                      bos_token_id=1, eos_token_id=2)),
    "gpt_neox": Architecture("GPTNeoX", {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}
                             | {"use_parallel_residual": False}),
    "opt": Architecture("OPT", dict(vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=LAYERS,
                                    num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32,
                                    dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2)),
    "bert": Architecture("Bert", _ENCODER),
    "roberta": Architecture("Roberta", _ENCODER),
    "deberta-v2": Architecture("DebertaV2", {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                                             "share_att_key": True, "position_buckets": 4, "type_vocab_size": 0,
                                             "norm_rel_ebd": "layer_norm"}),
    "modernbert": Architecture("ModernBert", dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48,
                                                  num_hidden_layers=LAYERS, num_attention_heads=4, pad_token_id=0,
                                                  local_attention=4, global_attn_every_n_layers=2, bos_token_id=1,
                                                  eos_token_id=2, cls_token_id=1, sep_token_id=2), True),
}  # fmt: skip
NAMES = tuple(ARCHITECTURES)
_RELATIVE: dict[str, Any] = dict(relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0)
_HEADS: dict[str, Any] = dict(vocab_size=VOCABULARY, n_layer=LAYERS, n_head=4, pad_token_id=0, bos_token_id=1,
                              eos_token_id=2)  # fmt: skip
# Those that most tests leave out: variants of the ones above, and architectures whose maps are found without an entry.
OTHERS = {
    "qwen2": Architecture("Qwen2", _DECODER),
    "gemma": Architecture("Gemma", {**_DECODER, "head_dim": 8}),
    "gemma2": Architecture("Gemma2", {**_DECODER, "head_dim": 8, "sliding_window": 4}),
    "smollm3": Architecture("SmolLM3", _DECODER),
    "olmo2": Architecture("Olmo2", _DECODER),
    "xlm-roberta": Architecture("XLMRoberta", _ENCODER),
    "deberta": Architecture("Deberta", {**_ENCODER, **_RELATIVE}),
    "mpnet": Architecture("MPNet", _ENCODER),
    "xlnet": Architecture("XLNet", {**_HEADS, "d_model": 32, "d_inner": 48}),
    "gptj": Architecture("GPTJ", {**_HEADS, "n_embd": 32, "n_positions": 64, "rotary_dim": 4}),
    "bloom": Architecture("Bloom", {**_HEADS, "hidden_size": 32}),
}
# One of each kind: separate maps, two ways to fuse them, an encoder, an attention with relative positions.
KINDS = ("llama", "gpt2", "phi3", "bert", "deberta-v2")
# For a test whose idea another test of the file shows on all: one of each kind, and the others with --thorough.
REPEATED = [name if name in KINDS else pytest.param(name, marks=pytest.mark.thorough) for name in NAMES]


def with_each(first: Any, *others: Any) -> list[Any]:
    """Pairs of a value and an architecture: all with the first value, one of each kind with the others.

    The rest is run with --thorough.
    """
    pairs = [pytest.param(first, name) for name in NAMES]
    for value in others:
        marks = {name: () if name in KINDS else pytest.mark.thorough for name in NAMES}
        pairs += [pytest.param(value, name, marks=marks[name]) for name in NAMES]
    return pairs


def tiny_model(name: str, **settings: Any) -> nn.Module:
    """The body, in eval mode, with the same random weights each time (large enough for differences to show)."""
    architecture = (ARCHITECTURES | OTHERS)[name]
    config = getattr(transformers, f"{architecture.prefix}Config")(**{**architecture.settings, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.2)
    assert model.config.model_type == name
    return model.eval()


def batch(rows: int = 6, tokens: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Random rows of 3 or more tokens, padded on the right with 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    lengths = torch.tensor([tokens - i % (tokens - 2) for i in range(rows)])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def stir(expert: Expert, seed: int = 0, size: float = 0.3) -> Expert:
    """Set an expert's cores and head to random values, as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
        expert.head.centre.copy_(torch.randn(expert.head.centre.shape, generator=generator) * size)
        expert.head.scale.fill_(1 + size * seed)
    return expert


def tiny_bank(name: str = "llama", **settings: Any) -> Bank:
    """A bank without experts on a tiny model."""
    return Bank(tiny_model(name, **settings), "mean")
