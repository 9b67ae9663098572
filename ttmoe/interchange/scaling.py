"""What a PEFT LoRA config says of the function: the scale of each module, and options that make it another one."""

from __future__ import annotations

import math
import re
from typing import Any

from ttmoe.errors import InputError

# What the tensors' own names and shapes say already, what only concerns training or loading, and what is read here.
_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias",
         "init_lora_weights")  # fmt: skip
_WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
)  # fmt: skip
# These starts leave the base's weights alone; others (PiSSA, OLoRA, CorDA, LoftQ) have changed them.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def require_plain(config: dict[str, Any], *, where: str) -> None:
    """Raise InputError for an adapter that is not plain LoRA on the base as it is, naming the option.

    An option that is not known here may be there only if it is off.
    """
    fix = "train or save the adapter without it: only plain LoRA can join a bank"
    if config.get("peft_type") != "LORA":
        raise InputError(f"peft_type {config.get('peft_type')!r} is not LORA", where=where, fix=fix)
    if config.get("bias", "none") != "none":
        raise InputError(f"bias={config['bias']!r} trains the base's biases", where=where, fix=fix)
    if config.get("init_lora_weights") not in _STARTS:
        raise InputError(f"init_lora_weights={config['init_lora_weights']!r} changes the base's weights",
                         where=where, fix="save it with PEFT's path_initial_model_for_weight_conversion")  # fmt: skip
    for key, value in config.items():
        if value and key not in _READ + _WITHOUT_EFFECT:
            raise InputError(f"{key}={value!r} is not supported", where=where, fix=fix)


def scaling_of(config: dict[str, Any], path: str, rank: int, *, where: str) -> float:
    """What PEFT multiplies this module's update by: alpha over the rank, or over its root (rsLoRA)."""
    try:
        patterns = config.get("alpha_pattern") or {}
        # The first pattern that meets the end of the path, as in PEFT's get_pattern_key.
        pattern = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", path)), None)
        alpha = float(config["lora_alpha"] if pattern is None else patterns[pattern])
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise InputError(f"alpha cannot be read ({error!r})", where=where, fix="save the adapter again") from error
    if not math.isfinite(alpha):
        raise InputError(f"alpha is {alpha}", where=where, fix="save the adapter again")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
