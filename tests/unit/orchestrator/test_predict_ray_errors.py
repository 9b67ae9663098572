"""How a worker of ``predict --ray`` tells the driver what failed. No Ray starts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.predict import ray_data
from ttmoe.errors import InputError, WorkFailedError


class UnpicklableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} [/{two}]")
        self.lock = __import__("threading").Lock()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputError("no such row", where="a.csv:3", fix="mend it"), InputError, "a.csv:3: no such row\n  mend it"),
        (UnpicklableError(1, 2), WorkFailedError, "a worker failed: UnpicklableError: 1 [/2]"),
    ],
)
def test_an_error_of_any_class_reaches_the_driver_as_values(error, kind, text):
    def load(device):
        raise error

    worker = ray_data._Worker(SimpleNamespace(router=SimpleNamespace(load=load), device="cpu"))
    names = {"path": "a.csv", "form": "csv", "number": 0, "offset": 0, "lines": 1, "rows": 1}
    (message,) = worker({name: np.array([value]) for name, value in names.items()})["error"]
    assert isinstance(message, str)
    with pytest.raises(kind) as caught:
        ray_data._raise_error(message)
    assert type(caught.value) is kind
    assert text in str(caught.value)
