"""A library so small that an expert trains in seconds: a random base and made-up texts, so nothing is downloaded."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.loading import LoadedConfig, resolved_yaml
from orchestrator.config.schema import Config

_LABELS = ("red", "green", "blue")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_ROWS, _WORDS = 90, 20
_WIDTH, _LAYERS, _LENGTH = 64, 2, 32


def tiny_config(
    place: Config | None, folder: Path, name: str, tasks: int, train: Mapping[str, Any], **resources: Any
) -> Config:
    """Return the config of a tiny library, which ``write_tiny_library`` makes.

    Args:
        place: Config whose store and resources the library uses; None for the defaults.
        folder: Folder of its base, its data and its output. On a cluster, all nodes share it.
        name: Start of its name. No other library has the name, in whichever store.
        tasks: Number of tasks.
        train: Settings of the training.
        resources: Settings that replace those of the place's section ``resources``.
    """
    given = place.model_dump(mode="json", exclude_unset=True) if place else {}
    entries = {
        f"t{number}": {
            "kind": "text",
            "source": {"path": str(folder / f"t{number}.jsonl")},
            "columns": {"text": "text"},
            "label": {"column": "label"},
            "split": {"validation": 0.2, "test": 0.2},
        }
        for number in range(tasks)
    }
    content = {
        "library": f"{name}-{secrets.token_hex(3)}",
        "seed": secrets.randbelow(2**31),  # so that nothing is found that another one has trained
        "base": {"folder": str(folder / "base"), "max_length": _LENGTH},
        "adapter": {"rank": 2},
        "train": {"batch_size": 8, **train},
        "tasks": entries,
        "router": {"batch_size": 32, "epochs": 1, "compare_depths": False},
        "resources": {**given.get("resources", {}), **resources},
        "storage": {"root": str(folder / "runs"), "trunk_gb": 0},
        "tracking": given.get("tracking", {}),
    }
    return Config.model_validate(content)


def write_tiny_library(config: Config) -> LoadedConfig:
    """Write the base, the data and the config file of a tiny library into its folder."""
    base = Path(str(config.base.folder))
    base.parent.mkdir(parents=True, exist_ok=True)
    words = []
    for task, entry in config.tasks.items():
        rows = tiny_texts(task)
        words += sorted({word for text, _ in rows for word in text.split()} - set(_LABELS))
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        Path(entry.source.path).write_text("\n".join(lines) + "\n", encoding="utf-8")  # type: ignore[union-attr, arg-type]
    _write_base(base, [*_SPECIAL, *_LABELS, *words], config.seed)
    text = resolved_yaml(config)  # without a password
    path = base.parent / "library.yaml"
    path.write_text(text, encoding="utf-8")
    return LoadedConfig(config, str(path), text)


def tiny_texts(task: str) -> list[tuple[str, str]]:
    """Return the texts of a task, each with its label: one of its words; the other words are the task's own."""
    rows = []
    for number in range(_ROWS):
        label = _LABELS[number % len(_LABELS)]
        first, last = f"{task}word{number % _WORDS}", f"{task}word{number // _WORDS}"
        rows.append((f"{first} {label} {last}", label))
    return rows


def _write_base(folder: Path, words: list[str], seed: int) -> None:
    """Write a random model and its tokenizer as ``from_pretrained`` loads them."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=_LENGTH, **names).save_pretrained(folder)
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * _WIDTH,
        max_position_embeddings=2 * _LENGTH,
        initializer_range=0.1,
        architectures=["BertModel"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = BertModel(shape).state_dict()
    # The model's own method would import DeepSpeed, which prints.
    shape.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
