"""The base: a frozen language model, named by where it comes from and known by the digest of its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttmoe.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

# What decides the model's outputs: weights, architecture and tokenizer. Model cards and the like do not.
_DECIDING = (
    "*.safetensors",
    "*.bin",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.model",
)


@dataclass(frozen=True)
class Base:
    """A base that lies in a local folder.

    ``source`` is ``package``, ``folder`` or ``hub``; ``id`` and ``revision`` name it there; ``digest`` is the sha256 of
    its deciding files, so that two places that hold the same model are the same base.
    """

    source: str
    id: str
    revision: str
    digest: str
    folder: str
    dtype: str
    max_length: int
    pooling: str

    def identity(self) -> dict[str, Any]:
        """Everything but where it lies: what an expert's spec and files record."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


def digest_folder(folder: Path) -> str:
    """sha256 over the names and contents of the files in ``folder`` that decide the model's outputs.

    Raises InputError where there is no ``config.json`` or no weights.
    """
    files = sorted({path for pattern in _DECIDING for path in folder.glob(pattern) if path.is_file()})
    if not (folder / "config.json").is_file() or not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise InputError(f"{folder} holds no model: config.json and *.safetensors are expected", where="base",
                         fix="give the folder that from_pretrained would load")  # fmt: skip
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def choose_dtype(dtype: str, device: str = "cpu") -> str:
    """What ``auto`` means on this device: bf16 where it is fast, in a GPU or a CPU that computes in it, else fp32."""
    import torch

    if dtype != "auto":
        return dtype
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def choose_device(device: str) -> str:
    """What ``auto`` means here: a GPU where there is one. Raises InputError for ``cuda`` without one."""
    import torch

    there = torch.cuda.is_available()
    if device.startswith("cuda") and not there:
        raise InputError("there is no GPU here that torch can use", where="device", fix="ask for cpu, or auto")
    return ("cuda" if there else "cpu") if device == "auto" else device


def load_body(base: Base, device: str | torch.device = "cpu") -> nn.Module:
    """The transformer without a head, in the base's dtype, frozen, in eval mode."""
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for every base that is loaded would drown a log
    # On a CPU, for the short rows of classification, plain attention ran twice as fast as the fused one.
    attention = "eager" if torch.device(device).type == "cpu" else "sdpa"
    model = AutoModel.from_pretrained(base.folder, dtype=getattr(torch, base.dtype), attn_implementation=attention,
                                      local_files_only=True)  # fmt: skip
    return model.requires_grad_(False).eval().to(device)


def empty_body(base: Base) -> nn.Module:
    """The same modules on the meta device: shapes without weights, to plan with."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.from_pretrained(base.folder, local_files_only=True))


def load_tokenizer(base: Base) -> Any:
    """The base's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.folder, local_files_only=True)


def choose_pooling(pooling: str, folder: Path) -> str:
    """What ``auto`` means: the mean over tokens for an encoder, the last token for a causal model."""
    if pooling != "auto":
        return pooling
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    return "last" if "CausalLM" in architectures[0] or architectures[0].startswith(("GPT", "OPT")) else "mean"
