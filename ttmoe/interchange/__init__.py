"""Experts in and out as standard PEFT LoRA adapters."""

from ttmoe.interchange.lora_export import export_lora
from ttmoe.interchange.lora_import import import_lora

__all__ = ["export_lora", "import_lora"]
