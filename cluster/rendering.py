"""Fill in the templates of this package: scripts and files that other programs read."""

from __future__ import annotations

import json

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_template(template: str, /, **values: object) -> str:
    """Return a template of ``cluster/templates`` with its values; in YAML, the filter ``quoted`` writes any text.

    Args:
        template: File name of the template.
        values: Its variables; each must be given.
    """
    templates = Environment(
        loader=PackageLoader("cluster"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
        keep_trailing_newline=True, autoescape=False,  # it is no HTML; what is quoted is quoted for its reader
    )  # fmt: skip
    templates.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return templates.get_template(template).render(**values)
