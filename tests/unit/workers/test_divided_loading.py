"""While ZeRO 3 loads a base, no process holds the whole of it in memory of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

MB = 10**6
WIDTH, LAYERS = 1024, 6


def load_part(rank: int, address: str, folder: str, told: Any) -> None:
    """Load a part of the base; tell by how much the private memory rose at most, and the bytes of the part."""
    import torch

    from ttmoe.base import Base
    from workers.training.engines.process_group import join_group
    from workers.training.engines.zero import Zero
    from workers.training.memory_limit import private_bytes
    from workers.training.settings import ZeroSettings

    torch.set_num_threads(1)
    join_group(address, rank, 2, "127.0.0.1")
    engine = Zero(ZeroSettings(stage=3))
    import transformers.models.llama.modeling_llama  # noqa: F401

    before, most, loaded = private_bytes(), [0], threading.Event()

    def sample() -> None:
        while not loaded.wait(0.02):
            most[0] = max(most[0], private_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    model = engine.load_body(Base("folder", "base", "", "digest", folder, "float32", 32, "last"), "cpu")
    loaded.set()
    sampler.join()
    part = sum(weight.ds_tensor.numel() * weight.ds_tensor.element_size() for weight in model.parameters())
    told.put((most[0] - before, part))
    told.close()
    told.join_thread()
    os._exit(0)  # no process waits for another at exit


def test_no_process_holds_the_whole_base_while_it_is_loaded(tmp_path):
    from workers.training.engines.process_group import free_address

    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
                         num_attention_heads=8, vocab_size=100)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="200MB")
    whole = sum(file.stat().st_size for file in Path(tmp_path).glob("*.safetensors"))
    context = multiprocessing.get_context("spawn")
    told, address = context.Queue(), free_address("127.0.0.1")
    processes = [
        context.Process(target=load_part, args=(rank, address, str(tmp_path), told), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = [told.get(timeout=300) for _ in processes]
    for most, part in found:
        assert part < 0.51 * whole
        assert most < part + 80 * MB  # with weights that are gathered at a time, 17 MB each
