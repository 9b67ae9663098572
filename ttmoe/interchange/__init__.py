"""Experts in and out as standard PEFT LoRA adapters."""

from ttmoe.interchange.exporting import export_lora
from ttmoe.interchange.importing import import_lora

__all__ = ["export_lora", "import_lora"]
