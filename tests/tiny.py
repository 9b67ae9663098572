"""A base and tasks so small that a real training takes a second: a random two-layer BERT over a few dozen words.

A row's label is decided by one word in it, so a training that works gets nearly every row right.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
COLOURS, ANIMALS = ("red", "green", "blue"), ("cat", "dog")
FILLERS = {name: [f"{name}{i}" for i in range(20)] for name in ("north", "south")}
WIDTH, LAYERS = 64, 2


def save_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a model and its tokenizer as ``from_pretrained`` would load them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [*SPECIAL, *COLOURS, *ANIMALS, *FILLERS["north"], *FILLERS["south"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=64, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, architectures=["BertModel"],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder


def sentences(count: int, words: Iterable[str], filler: str, seed: int = 0) -> list[tuple[str, str]]:
    """(text, deciding word), all texts different, the words in turn."""
    draw, words = random.Random(f"{filler} {seed}"), list(words)
    rows: dict[str, str] = {}
    while len(rows) < count:
        word = words[len(rows) % len(words)]
        text = draw.choices(FILLERS[filler], k=draw.randint(1, 4))
        text.insert(draw.randrange(len(text) + 1), word)
        rows.setdefault(" ".join(text), word)
    return list(rows.items())


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_texts(path: Path, words: Iterable[str], filler: str, count: int = 240) -> Path:
    """A JSONL file of a task on one text: columns ``text`` and ``label``."""
    return write_rows(path, ({"text": t, "label": w} for t, w in sentences(count, words, filler)))


def write_two_tasks(folder: Path, base_folder: Path, store: Path, config: str) -> Path:
    """Write a folder with a base, rows of colours and animals, ``tiny.yaml`` and an empty registry."""
    shutil.copytree(base_folder, folder / "base")
    write_texts(folder / "colours.jsonl", COLOURS, "north", 90)
    write_texts(folder / "animals.jsonl", ANIMALS, "south", 90)
    (folder / "tiny.yaml").write_text(config)
    (folder / "runs").mkdir()
    shutil.copy(store, folder / "runs")
    return folder


def text_task(path: Path) -> dict[str, Any]:
    """A config's entry for such a file."""
    return {"kind": "text", "source": {"path": str(path)}, "columns": {"text": "text"},
            "label": {"column": "label"}, "split": {"validation": 0.2, "test": 0.2}}  # fmt: skip


def write_expert_files(folder: Path, weights: bytes, **manifest: Any) -> Path:
    """Write files that the registry takes for an expert's, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "expert.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    (folder / "expert.json").write_text(json.dumps({**manifest, "weights_digest": digest}))
    return folder


def left_running(mark: str, seconds: float = 15.0) -> list[str]:
    """Processes that carry ``mark`` in their environment and have not ended after ``seconds``, this one not counted."""
    import psutil

    def alive() -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                marked = mark in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE
                if marked and process.pid != os.getpid():
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
            except psutil.Error:
                continue
        return found

    wait_for(lambda: not alive(), seconds)
    return alive()


def wait_for(done: Callable[[], bool], seconds: float) -> bool:
    """Poll until ``done()``; whether it was in time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
