"""The chat template in a base's folder, read without transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def read_chat_template(folder: Path) -> str:
    """Return the chat template of a base's folder, as transformers reads it; "" if it has none."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    if isinstance(found, list):  # several with names, as earlier versions of transformers wrote them
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found if isinstance(found, str) else ""


def template_digest(template: str) -> str:
    """Return the SHA-256 of a chat template, by which specs and cached tokens know it."""
    return hashlib.sha256(template.encode()).hexdigest()
