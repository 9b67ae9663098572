"""How many tokens a base can read: exactly as many as its table of positions has room for."""

from __future__ import annotations

import pytest
import torch
import transformers

from ttmoe.positions import embedded_ids, largest_id, usable_positions

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40}
OTHERS = {
    "DistilBert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1},
    "OPT": {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "Electra": {"embedding_size": 16},
    "GPTJ": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 1},
    "GPTNeo": {
        "num_layers": 1,
        "attention_types": [[["global"], 1]],
        "num_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
    "CTRL": {"n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 16},
    "OpenAIGPT": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "Bloom": {"n_layer": 1, "n_head": 2},
    "XGLM": {"d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16},
}


def body(architecture, **more):
    config = getattr(transformers, f"{architecture}Config")(**SIZES, **OTHERS.get(architecture, {}), **more)
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("architecture", "positions"),
    [("Bert", 20), ("Roberta", 18), ("MPNet", 18), ("DistilBert", 20), ("Albert", 20), ("GPT2", 20), ("OPT", 20),
     ("XLMRoberta", 18), ("Camembert", 18), ("Data2VecText", 18), ("IBert", 18), ("Electra", 20), ("Nystromformer", 20),
     ("DebertaV2", 20), ("GPTJ", 20), ("GPTNeo", 20), ("CTRL", 20), ("OpenAIGPT", 20), ("BioGpt", 20)],
)  # fmt: skip
def test_a_base_reads_as_many_tokens_as_it_has_positions(architecture, positions):
    model = body(architecture, max_position_embeddings=20)
    assert usable_positions(model) == positions
    row = torch.full((1, positions), 5)
    model(input_ids=row, attention_mask=torch.ones_like(row))
    row = torch.full((1, positions + 1), 5)
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=row, attention_mask=torch.ones_like(row))


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Falcon", "Bloom", "XGLM"])
def test_rotary_and_computed_positions_have_no_end(architecture):
    assert usable_positions(body(architecture, max_position_embeddings=20)) is None


def test_ids_of_a_tokenizer_and_of_a_base():
    assert embedded_ids(body("Bert")) == 40

    class Tokenizer:
        def get_vocab(self):
            return {"a": 0, "<added>": 57, "b": 1}

    assert largest_id(Tokenizer()) == 57
