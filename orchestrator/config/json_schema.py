"""The JSON Schema of a config, by which editors check and complete YAML files.

It is written in draft 7, which the YAML language servers of all editors know. Rules that span several keys are left to
the config's own checks: the schema accepts a few configs that are not valid. It wants numbers and booleans as YAML 1.2
writes them, where a config also accepts text for them (``yes``, ``1_000``).
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.config.schema import Config

SCHEMA_FILE = "ttmoe.schema.json"
"""Name of the file that ``ttmoe init`` writes; the first line of the starter config refers to it."""
_DRAFT = "http://json-schema.org/draft-07/schema#"


def schema_text() -> str:
    """Return the JSON Schema of a config as text."""
    schema = Config.model_json_schema(ref_template="#/definitions/{model}")
    head = {"$schema": _DRAFT, "$comment": "Printed by `ttmoe config schema`.", "title": "ttmoe config"}
    return json.dumps(head | _to_draft_7({"definitions": schema.pop("$defs")} | schema), indent=1) + "\n"


def _to_draft_7(schema: Any) -> Any:
    """Return a part of pydantic's schema in the words of draft 7, without what only disturbs in an editor."""
    if isinstance(schema, list):
        return [_to_draft_7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "definitions"):
            changed[key] = {name: _to_draft_7(part) for name, part in value.items()}
        elif key == "prefixItems":
            changed |= {"items": _to_draft_7(value), "additionalItems": False}
        # Titles repeat the keys, and an editor would write a default of null into the file.
        elif key != "title" and (key, value) != ("default", None):
            changed[key] = _to_draft_7(value)
    return changed
