"""Names of the files and keys in the folder of a PEFT LoRA adapter, and of the head's file beside them."""

from __future__ import annotations

LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"
"""The head: ``weight (states - centre) / scale + bias`` are the scores of pooled states. PEFT ignores the file."""

KEY_PREFIX = "base_model.model."
"""The prefix that PEFT puts before the path of every module."""
