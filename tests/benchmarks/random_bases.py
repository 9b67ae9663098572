"""Bases of real sizes with random weights, made on the device: what is measured does not depend on the weights."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ttmoe.attention import use_right_padding
from ttmoe.base import Base
from ttmoe.encoding import Item
from workers.training.batches import TokenizedRows

LLAMA_1B: dict[str, Any] = dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
                                intermediate_size=8192, head_dim=64, vocab_size=128_256)  # fmt: skip
LLAMA_3B: dict[str, Any] = {**LLAMA_1B, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24,
                            "head_dim": 128}  # fmt: skip
LLAMA_22M: dict[str, Any] = {
    **LLAMA_1B,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 32,
    "intermediate_size": 1536,
    "vocab_size": 30_522,
}  # of MiniLM's size
LLAMA_8B: dict[str, Any] = {**LLAMA_1B, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14_336,
                            "head_dim": 128}  # fmt: skip


@dataclass(frozen=True)
class RandomBase:
    """A Llama of a size.

    Attributes:
        name: Its name in the table.
        config: What differs from the defaults of ``LlamaConfig``.
        device: Where it is.
        dtype: Of its weights.
    """

    name: str
    config: dict[str, Any] = field(hash=False)
    device: str
    dtype: str = "bfloat16"

    def body(self) -> nn.Module:
        """The body as ``load_body`` returns it: frozen, in eval mode, without a cache."""
        import transformers

        config = transformers.LlamaConfig(**self.config)
        with torch.device(self.device):
            model = transformers.AutoModel.from_config(config, dtype=getattr(torch, self.dtype),
                                                       attn_implementation="sdpa")  # fmt: skip
        use_right_padding(model)
        model.config.use_cache = False
        return model.requires_grad_(False).eval()

    def described(self, max_length: int) -> Base:
        """What a plan would say of it."""
        return Base("folder", self.name, "", self.name, "", self.dtype, max_length, "last")

    def rows(self, count: int, lengths: tuple[int, int], classes: int, seed: int = 0) -> TokenizedRows:
        """Rows of random tokens, of lengths between two bounds."""
        draw = random.Random(seed)
        items = [Item({"input_ids": [draw.randrange(3, self.config["vocab_size"])
                                     for _ in range(draw.randint(*lengths))]}) for _ in range(count)]  # fmt: skip
        return TokenizedRows(items, [draw.randrange(classes) for _ in range(count)])


def plain_copy(model: nn.Module) -> nn.Module:
    """A model with modules of its own and the same weights, for a peer that replaces modules; with plain attention."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, dict(shared))
    copied.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    return copied


def tokenizer(words: list[str]) -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", *sorted(set(words))])}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
                                   model_input_names=["input_ids", "attention_mask"])  # fmt: skip
