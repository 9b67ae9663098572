"""The adapted layers of a base, and the updates that they currently apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import nn

from ttmoe.disentangled import split_position_bias
from ttmoe.layer import AdaptedLinear
from ttmoe.quantization import float_dtype
from ttmoe.stacking import Updates
from ttmoe.targets import Site


class AdaptedLayers:
    """The linear maps of a model that were replaced with ``AdaptedLinear``.

    Attributes:
        model: The model whose modules are replaced.
        by_path: The adapted layers by their path in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_path: dict[str, AdaptedLinear] = {}
        self._updates: Updates = {}

    def wrap(self, site: Site) -> None:
        """Replace the linear map at ``site`` with an ``AdaptedLinear``, unless it is one, and register the role."""
        if site.path not in self.by_path:
            parent, _, child = site.path.rpartition(".")
            inner = self.model.get_submodule(site.path)
            layer = AdaptedLinear(inner, float_dtype(self.model)).train(self.model.training)
            setattr(self.model.get_submodule(parent), child, layer)
            split_position_bias(self.model.get_submodule(parent))
            self.by_path[site.path] = layer
        self.by_path[site.path].parts.setdefault(site.role, site.rows)

    @contextmanager
    def applying(self, updates: Updates) -> Iterator[None]:
        """Within this context the layers apply ``updates`` instead of the ones before; contexts may be nested."""
        before = self._updates
        try:
            self._set(updates)
            yield
        finally:
            self._set(before)

    def snapshot(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a function that opens a context in which the layers apply the updates of now."""
        return partial(self.applying, self._updates)

    def _set(self, updates: Updates) -> None:
        if updates is not self._updates:
            self._updates = updates
            for path, layer in self.by_path.items():
                layer.updates = updates.get(path, {})
