"""A causal base so small that an expert learns to write on it in seconds: a random Llama (or another) over few words.

An answer is one or two words, and one word of the prompt decides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
ANSWERS = {"red": "dog", "green": "cat dog", "blue": "cat"}
WIDTH, LAYERS = 64, 2
SIZES: dict[str, Any] = dict(
    hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3, tie_word_embeddings=True,
)  # fmt: skip


def save_causal_base(folder: Path, prefix: str = "Llama", *, seed: int = 0, more: Sequence[str] = (),
                     special: Sequence[str] = (), **settings: Any) -> Path:  # fmt: skip
    """Write a causal model and its tokenizer, with ``more`` words, as ``from_pretrained`` would load them."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, *tiny.COLOURS, *tiny.ANIMALS, *tiny.FILLERS["north"], *tiny.FILLERS["south"], *more]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if more else pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B",
                                                             special_tokens=[("<s>", 2)])  # fmt: skip
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names,
                                                model_input_names=["input_ids", "attention_mask"],
                                                additional_special_tokens=list(special))  # fmt: skip
    made.save_pretrained(folder)
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(words), **{**SIZES, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folder)
    return folder


def completions(count: int, filler: str = "north", seed: int = 0) -> list[tuple[str, str]]:
    """(prompt, answer), all prompts different."""
    return [(text, ANSWERS[word]) for text, word in tiny.sentences(count, ANSWERS, filler, seed)]


def writing_task(path: Path, count: int = 240) -> dict[str, Any]:
    """A config's entry for a task on such rows, which are written to ``path``."""
    tiny.write_rows(path, ({"question": prompt, "reply": answer} for prompt, answer in completions(count)))
    return {"kind": "generate", "source": {"path": str(path)}, "columns": {"prompt": "question", "answer": "reply"},
            "split": {"validation": 0.2, "test": 0.2}}  # fmt: skip
