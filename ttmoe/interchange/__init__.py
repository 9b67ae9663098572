"""Export of experts to PEFT LoRA adapters, and import of PEFT LoRA adapters as experts."""

from ttmoe.interchange.lora_export import export_lora
from ttmoe.interchange.lora_import import import_lora

__all__ = ["export_lora", "import_lora"]
