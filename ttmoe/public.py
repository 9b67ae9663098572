"""The public names of ``ttmoe``, which imports this module at the first use of one of them."""

from __future__ import annotations

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.conversation import Conversation
from ttmoe.encoding import Choice, Completion
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, save_expert
from ttmoe.generation import GeneratedText, generate
from ttmoe.interchange import export_lora, import_lora
from ttmoe.prediction import Prediction
from ttmoe.routed import RoutedModel
from ttmoe.shapes import TTShape
from ttmoe.text_bank import TextBank
from ttmoe.trunk import Trunk

__all__ = [
    "AdapterSpec",
    "Bank",
    "Base",
    "Choice",
    "Completion",
    "Conversation",
    "GeneratedText",
    "InputError",
    "Prediction",
    "RoutedModel",
    "TTShape",
    "TextBank",
    "Trunk",
    "export_lora",
    "generate",
    "import_lora",
    "load_body",
    "load_expert",
    "load_tokenizer",
    "save_expert",
]
