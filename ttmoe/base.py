"""The base: a frozen language model in a local folder, identified by the digest of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttmoe.errors import InputError
from ttmoe.quantization import NOT_QUANTISED, keep_trainable, quantization_arguments

if TYPE_CHECKING:
    import torch
    from torch import nn

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
                   "*.spm", "*.tiktoken", "tekken.json", "bpe.codes", "dict.txt", "emoji.json", "byte_maps.json",
                   "word_*.json")  # fmt: skip
"""Patterns of the files from which transformers makes a tokenizer."""
COPY_FIX = "copy or download the model again: it must be a folder that from_pretrained can load"
_MODEL_FILES = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("*.bin", "*.bin.index.json")  # read only where there are no _SAFETENSORS
# What earlier versions digested. Their experts and routers record such digests.
_DIGESTED_EARLIER = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "vocab*", "merges.txt",
                     "special_tokens_map.json", "*.model")  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base in a local folder, and how experts use it.

    Attributes:
        source: ``package``, ``folder`` or ``hub``.
        id: Name of the base in the source.
        revision: Version of the package, or commit on the hub; empty for a folder.
        digest: ``digest_folder`` of the folder; two folders with the same model are the same base. Of a base whose
            weights are quantised when it is loaded, ``quantised_digest`` of it: another base.
        folder: Path of the local folder.
        dtype: Name of the torch dtype of the weights.
        max_length: Longest sequence, in tokens.
        pooling: ``mean`` or ``last``.
        asked: Keywords and values by which ``resolve_base`` finds it on another node; empty if its folder is all there
            is.
        chat_template: The chat template of its tokenizer; "" if there is none, or the folder's own is to be used.
    """

    source: str
    id: str
    revision: str
    digest: str
    folder: str
    dtype: str
    max_length: int
    pooling: str
    asked: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    chat_template: str = field(default="", compare=False, repr=False)

    @property
    def quantize(self) -> str:
        """How the weights of linear maps are quantised: ``none``, ``int8`` or ``nf4``."""
        return self.digest.rpartition(":")[0] or NOT_QUANTISED

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide results, as hashed in specs: what the base is, not where it lies."""
        return {key: getattr(self, key) for key in ("digest", "dtype", "max_length", "pooling")}

    def record(self) -> dict[str, Any]:
        """Return the identity, and the source as information, as kept in the files of experts and routers."""
        return {"source": self.source, "id": self.id, "revision": self.revision, **self.identity()}


def quantised_digest(digest: str, quantize: str) -> str:
    """Return the digest of a base that is quantised when it is loaded, such as ``nf4:0123...``.

    Its outputs are not those of the base, so experts, routers and caches of one are not valid for the other.

    Args:
        digest: Digest of the base's files.
        quantize: ``none``, ``int8`` or ``nf4``.
    """
    return digest if quantize == NOT_QUANTISED else f"{quantize}:{digest}"


def sha256_of_file(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, file_sha256: Callable[[Path], str] = sha256_of_file) -> str:
    """Return the sha256 hex digest of the names and contents of the files that decide the model's outputs.

    These are the files that transformers reads:

    - ``config.json``, and ``adapter_config.json``, by which transformers changes the weights where PEFT is installed;
    - ``*.safetensors``, and the index that says which of them are loaded; if there are none, ``*.bin`` with their
      index. Beside safetensors, ``*.bin`` is not read;
    - the tokenizer: ``TOKENIZER_FILES``, with the vocabularies of all its forms (sentencepiece, tiktoken, BPE) and
      ``added_tokens.json``, which adds tokens to those that have no ``tokenizer.json``.

    Other files decide nothing here: ``generation_config.json`` (generation has settings of its own), chat templates
    (experts for conversations have their own digest of it), model cards, and the files of other libraries.

    Args:
        folder: The base's folder.
        file_sha256: Returns the sha256 hex digest of a file, such as one that was computed before.

    Raises:
        InputError: If the folder has no ``config.json`` or no weights.
    """
    pickles = () if any((folder / name).is_file() for name in _SAFETENSORS) else _PICKLES
    return _digest_files(folder, (*_MODEL_FILES, *pickles, *TOKENIZER_FILES), file_sha256)


def contains_base(folder: Path, digest: str, file_sha256: Callable[[Path], str] = sha256_of_file) -> bool:
    """Return whether the base in a folder has this digest, which an earlier version may have computed.

    Args:
        folder: The folder.
        digest: Digest of a base, quantised or not.
        file_sha256: As in ``digest_folder``.

    Raises:
        InputError: If the folder contains no model.
    """
    of_files = digest.rpartition(":")[2]
    return of_files in (digest_folder(folder, file_sha256), _digest_files(folder, _DIGESTED_EARLIER, file_sha256))


def _digest_files(folder: Path, patterns: Iterable[str], file_sha256: Callable[[Path], str]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not (folder / "config.json").is_file() or not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise InputError(f"{folder} contains no model: config.json and *.safetensors are required", where="base",
                         fix="use a folder that from_pretrained can load")  # fmt: skip
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + b"\0")
        total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()


def choose_dtype(dtype: str, device: str = "cpu") -> str:
    """Resolve ``auto`` to ``bfloat16`` if the device computes in it natively, else to ``float32``."""
    import torch

    if dtype != "auto":
        return dtype
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def choose_device(device: str) -> str:
    """Resolve ``auto`` to ``cuda`` if torch can use a GPU, else to ``cpu``.

    Raises:
        InputError: If ``device`` is ``cuda`` and torch can use no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise InputError("torch can use no GPU on this machine", where="device", fix="use cpu or auto")
    return ("cuda" if available else "cpu") if device == "auto" else device


def choose_attention(device_type: str) -> str | None:
    """Return the attention of a base on such a device, as transformers names it.

    None is the fused one where the architecture has it, else the eager one. On a CPU, the eager one ran twice as fast
    on the short rows of classification.
    """
    return "eager" if device_type == "cpu" else None


def require_whole_weights(folder: Path) -> None:
    """Raise InputError if a safetensors file of a base is cut or damaged, according to its header."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):  # compares the sizes in the header with that of the file
                pass
        except SafetensorError as error:
            raise InputError(f"{path.name} is damaged: {error}", where=str(folder), fix=COPY_FIX) from None


def load_body(base: Base, device: str | torch.device = "cpu", *, whole: bool = True) -> nn.Module:
    """Load the transformer without a head and without dropout, in the base's dtype, frozen and in eval mode.

    Each tensor goes from its file to the device by itself; the whole model is never in host memory beside it.

    Args:
        base: The base.
        device: Device of the weights. ``cuda``, without a number, is the first GPU, or all GPUs if the base has no room
            on one: its layers are divided among them, and its inputs and outputs are on the first.
        whole: Whether this process holds all weights. If not, the caller has told transformers to divide them among
            processes, and they stay where it puts them.

    Raises:
        InputError: If its weights are damaged, or the GPUs have no room for them.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    from ttmoe.attention import use_right_padding
    from ttmoe.placement import place_on_gpus, require_on_gpus, weight_bytes

    disable_progress_bar()  # a bar for every loaded base would flood the log
    config, attention = _load_config(base), choose_attention(torch.device(device).type)
    place: dict[str, Any] = {"device_map": {"": str(device)}} if whole else {}
    if whole and str(device) == "cuda":
        place = place_on_gpus(weight_bytes(empty_body(base), getattr(torch, base.dtype).itemsize, base.quantize))
    try:
        model = AutoModel.from_pretrained(base.folder, config=config, dtype=getattr(torch, base.dtype),
                                          local_files_only=True, trust_remote_code=False,
                                          attn_implementation=attention, **place,
                                          **quantization_arguments(base.quantize, base.dtype))  # fmt: skip
    except SafetensorError:
        require_whole_weights(Path(base.folder))
        raise
    require_on_gpus(model)
    use_right_padding(model)
    keep_trainable(model)
    model.config.use_cache = False  # a pass would end with the keys and values of all layers; generation asks for them
    return model.requires_grad_(False).eval()


def empty_body(base: Base) -> nn.Module:
    """Return the modules of ``load_body`` on the meta device, without weights, for planning."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(_load_config(base), trust_remote_code=False)


def _load_config(base: Base) -> Any:
    """Load the base's config with all rates of dropout and of noise set to 0.

    The base would draw over whole batches, so that an expert's training would depend on the experts beside it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many classes
        what = f"transformers cannot read its config.json: {_first_line(error)}"
        fix = "check `model_type`, or install a version of transformers that knows it"
        raise InputError(what, where=str(base.folder), fix=fix) from error
    for name, value in list(vars(config).items()):
        if ("drop" in name or "jitter" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_tokenizer(base: Base) -> Any:
    """Load the base's tokenizer. Raise InputError if transformers cannot."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many classes
        what = f"transformers cannot load its tokenizer: {_first_line(error)}"
        raise InputError(what, where=str(base.folder), fix=COPY_FIX) from error
    if base.chat_template:  # the driver's: another copy of the base may have another one, or none
        tokenizer.chat_template = base.chat_template
    return tokenizer


def choose_pooling(pooling: str, folder: Path) -> str:
    """Resolve ``auto`` to ``last`` (token) for a causal model in ``folder``, else to ``mean`` (over tokens)."""
    if pooling != "auto":
        return pooling
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    first = str(architectures[0] if isinstance(architectures, list) else architectures)
    return "last" if "CausalLM" in first or first.startswith(("GPT", "OPT")) else "mean"
