"""DeepSpeed's ZeRO: processes that share the optimizer's state, the gradients, and with stage 3 the base's weights.

Rajbhandari et al., 2020 (arXiv 1910.02054). With stage 3, each process holds an equal part of every large weight of
the frozen base; all parts of a layer are gathered before its pass, and released after it. What an expert adds is
small: every process holds its weights, and stages 1 to 3 divide its optimizer's state.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import torch
from torch import nn

from ttmoe.base import Base, load_body
from ttmoe.errors import InputError
from ttmoe.expert import Expert
from workers.training.engines.data_parallel import DataParallel
from workers.training.engines.disk_offload import disk_settings, require_disk_operator
from workers.training.engines.zero_optimizer import ZeroOptimizer
from workers.training.memory import LIVE_NUMBERS
from workers.training.memory_limit import returning_blocks
from workers.training.optimizer import Optimizer, make_optimizer
from workers.training.settings import TrainSettings, ZeroSettings

_FORMATS = {"bf16": "bfloat16", "fp16": "float16"}  # torch's number format of each section of a config


class Zero(DataParallel):
    """The engine of DeepSpeed, with one process or several. The process must be in a group.

    Args:
        settings: Stage and offloading.
    """

    records_graphs = False

    def __init__(self, settings: ZeroSettings) -> None:
        super().__init__()
        _start_deepspeed()
        if settings.offload_param == "nvme":
            require_disk_operator()
        self.settings = settings
        self.shards_base = settings.stage == 3

    def load_body(self, base: Base, device: str) -> nn.Module:
        """Load the base; with stage 3, each weight is divided among the processes as soon as it is created."""
        if not self.shards_base:
            return load_body(base, device)
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        config = self._config(base)
        partitioning = HfDeepSpeedConfig(config)  # transformers partitions while this object lives
        with returning_blocks():
            model = load_body(base, device, whole=False)
        del partitioning
        for module in model.modules():  # only weights are on the device so far
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        deepspeed.initialize(model=model, config=config)  # registers hooks, by which weights are gathered and released
        # DeepSpeed keeps every model that it has divided in this list, to which a pass adds the modules that it enters.
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not model]
        return model

    def make_optimizer(self, expert: Expert, settings: TrainSettings) -> Optimizer:
        """Return AdamW, whose state is divided among the processes from stage 1 on."""
        optimizer = make_optimizer(expert, settings)
        if not self.settings.stage:
            return optimizer
        return ZeroOptimizer(optimizer, min(self.settings.stage, 2), self.settings.offload_optimizer != "none")

    def _config(self, base: Base) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": 3,
            "stage3_param_persistence_threshold": self.settings.param_persistence_threshold,
            "stage3_max_live_parameters": LIVE_NUMBERS,
            "stage3_max_reuse_distance": LIVE_NUMBERS,
        }
        if self.settings.offload_param == "cpu":
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        elif self.settings.offload_param == "nvme":
            zero |= disk_settings(base, str(self.settings.nvme_path), self.size)
        formats = {
            name: {"enabled": True} for name, of in _FORMATS.items() if of == base.dtype
        }  # else it would be fp32
        return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **formats}


@cache
def _start_deepspeed() -> None:
    """Let DeepSpeed use the process's group.

    Raises:
        InputError: If DeepSpeed cannot be imported.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise InputError(f"DeepSpeed cannot be imported: {error}", where="train.engine",
                         fix="pip install deepspeed, or choose another engine") from error  # fmt: skip
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On a CPU, DeepSpeed compiles an operator that speaks through the shared memory of one machine, half a minute
    # with g++ and ninja. Processes may be on several machines; gloo serves both.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
