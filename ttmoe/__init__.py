"""TT-LoRA experts, banks of experts on one frozen base, and the router that chooses an expert for each input.

This package is the model alone: it imports no Ray, MLflow, config or command line. In a notebook, start with
``TextBank``. The public names are imported at their first use, so ``import ttmoe`` does not import torch.
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
