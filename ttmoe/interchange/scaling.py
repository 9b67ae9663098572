"""Checks and scaling factors from the config of a PEFT LoRA adapter."""

from __future__ import annotations

import math
import re
from typing import Any

from ttmoe.errors import InputError

# Options that are read here or in lora_import.
_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias",
         "init_lora_weights")  # fmt: skip
# Options that only concern training or loading, or repeat what the names and shapes of the tensors show.
_WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
)  # fmt: skip
# Initialisations that keep the base's weights; the others (PiSSA, OLoRA, CorDA, LoftQ) change them.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def require_plain_lora(config: dict[str, Any], *, where: str) -> None:
    """Check that an adapter is plain LoRA on the unchanged base.

    Args:
        config: Content of ``adapter_config.json``.
        where: The file, for the error message.

    Raises:
        InputError: If an option makes the adapter another function, or an unknown option is on.
    """
    fix = "train or save the adapter without it: only plain LoRA can be imported"
    if config.get("peft_type") != "LORA":
        raise InputError(f"peft_type {config.get('peft_type')!r} is not LORA", where=where, fix=fix)
    if config.get("bias", "none") != "none":
        raise InputError(f"bias={config['bias']!r} trains the base's biases", where=where, fix=fix)
    if config.get("init_lora_weights") not in _INITIALISATIONS:
        raise InputError(f"init_lora_weights={config['init_lora_weights']!r} changes the base's weights",
                         where=where, fix="save it with PEFT's path_initial_model_for_weight_conversion")  # fmt: skip
    for key, value in config.items():
        if value and key not in _READ + _WITHOUT_EFFECT:
            raise InputError(f"{key}={value!r} is not supported", where=where, fix=fix)


def scaling_of(config: dict[str, Any], path: str, rank: int, *, where: str) -> float:
    """Return PEFT's scaling of a module's update: alpha / rank, or alpha / sqrt(rank) with rsLoRA.

    Args:
        config: Content of ``adapter_config.json``.
        path: Path of the module, as in the adapter's keys.
        rank: Rank of the module's factors.
        where: The file, for the error message.

    Raises:
        InputError: If alpha is missing or not a finite number.
    """
    try:
        patterns = config.get("alpha_pattern") or {}
        # The first pattern that matches the end of the path, as in PEFT's get_pattern_key.
        pattern = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", path)), None)
        alpha = float(config["lora_alpha"] if pattern is None else patterns[pattern])
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise InputError(f"cannot read alpha ({error!r})", where=where, fix="save the adapter again") from error
    if not math.isfinite(alpha):
        raise InputError(f"alpha is {alpha}", where=where, fix="save the adapter again")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
