"""TT-LoRA experts, banks of them on one frozen base, and the router that picks among them.

This package stands on its own: it knows nothing of clusters, registries, configs or the command line. ``TextBank`` is
the way in from a notebook. Its names are imported when the first is used: ``import ttmoe`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ttmoe.public import *  # noqa: F403


def __getattr__(name: str) -> object:
    if not name.startswith("_"):
        import ttmoe.public as public

        if name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    import ttmoe.public as public

    return [*globals(), *public.__all__]
