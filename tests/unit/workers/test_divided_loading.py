"""A base that ZeRO 3 divides: no process ever holds the whole of it, in main memory or on a disk."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

MB = 10**6
WIDTH, LAYERS = 1024, 6


def load_part(rank: int, address: str, folder: str, disk: str, told: Any) -> None:
    """Load a part of the base, and train on it for a step.

    Tell by how much the private memory rose at most in the loading, the bytes of the part, the files on the disk, the
    weights that are whole after the step, and the gradient of one core.
    """
    import torch
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from ttmoe.adapter import AdapterSpec
    from ttmoe.bank import Bank
    from ttmoe.base import Base
    from workers.training.engines.process_group import join_group
    from workers.training.engines.zero import Zero
    from workers.training.memory_limit import private_bytes
    from workers.training.settings import ZeroSettings

    torch.set_num_threads(1)
    join_group(address, rank, 2, "127.0.0.1")
    engine = Zero(ZeroSettings(stage=3, **({"offload_param": "nvme", "nvme_path": disk} if disk else {})))
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
    bank = Bank(model, "last").train()
    expert = bank.add("one", AdapterSpec(rank=2, first_layer=2), 3, torch.Generator().manual_seed(1), random_head=True)
    with torch.no_grad():
        for core in expert.adapter.parameters():
            core.add_(0.1)
    ids = torch.arange(3, 19).reshape(2, 8)
    bank({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "one").square().sum().backward()
    whole = [name for name, weight in model.named_parameters()
             if weight.ds_status != ZeroParamStatus.NOT_AVAILABLE and weight.numel() > WIDTH]  # fmt: skip
    gradient = next(expert.adapter.parameters()).grad.flatten()[:9].tolist()
    files = sum(file.stat().st_size for file in Path(disk).rglob("*.swp")) if disk else 0
    told.put((most[0] - before, part, files, whole, gradient))
    told.close()
    told.join_thread()
    os._exit(0)  # no process waits for another at exit


def load_in_group(base: Path, disk: str = "") -> list[tuple[int, int, int, list[str], list[float]]]:
    """Return what each of two processes tells."""
    from workers.training.engines.process_group import free_address

    context = multiprocessing.get_context("spawn")
    told, address = context.Queue(), free_address("127.0.0.1")
    for rank in range(2):
        context.Process(target=load_part, args=(rank, address, str(base), disk, told), daemon=True).start()
    return [told.get(timeout=300) for _ in range(2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
                         num_attention_heads=8, vocab_size=100)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200MB")
    return folder


@pytest.fixture(scope="module")
def in_memory(base):
    return load_in_group(base)


def test_no_process_holds_the_whole_base_while_it_is_loaded(base, in_memory):
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    for most, part, *_ in in_memory:
        assert part < 0.51 * size
        assert most < part + 80 * MB  # with weights that are gathered at a time, 17 MB each


def test_no_weight_stays_whole_after_a_step(in_memory):
    for *_, whole, gradient in in_memory:
        assert whole == []
        assert any(gradient)


@pytest.mark.thorough
def test_parts_on_a_disk_train_as_parts_in_memory_do(base, in_memory, tmp_path):
    """DeepSpeed compiles its operator first, for minutes, unless torch's cache of extensions has it."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        pytest.skip("libaio is not installed")
    for _, _, files, whole, gradient in load_in_group(base, str(tmp_path)):
        assert files > 180 * MB
        assert whole == []
        assert gradient == pytest.approx(in_memory[0][4], rel=1e-4)
