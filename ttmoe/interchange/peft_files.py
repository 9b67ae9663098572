"""The files of a PEFT LoRA adapter folder, and of the head that travels beside them."""

from __future__ import annotations

CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "head.safetensors"
"""The head's state: scores are ``weight (states - centre) / scale + bias`` of the pooled states. PEFT ignores it."""

ROOT = "base_model.model."
"""What PEFT puts before the path of every module."""
