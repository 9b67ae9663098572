"""What MLflow loads a registered router with: texts in; tasks, labels and confidences out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttmoe.base import Base, digest_folder
from ttmoe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from ttmoe.routed import RoutedModel


class RouterModel:
    """A library's routed model behind MLflow's ``predict``."""

    def __init__(self, model: RoutedModel) -> None:
        self.model = model

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """``text: string`` to ``task: string, label: string, confidence: double``, in the same order."""
        import pandas as pd

        answers = self.model.predict([str(text) for text in inputs["text"]])
        rows = [(answer.task, answer.label, answer.confidence) for answer in answers]
        return pd.DataFrame(rows, columns=["task", "label", "confidence"], index=inputs.index)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> RouterModel:
    """MLflow's entry point. ``path`` is the registered folder; ``model_config["base"]`` says where the base
    lies (or the variable TTMOE_BASE, which comes first).

    Raises InputError when it is not there or is another base than the router was trained on.
    """
    from ttmoe.routed import RoutedModel

    folder = Path(path)
    identity = json.loads((folder / "router.json").read_text())["base"]
    place = os.environ.get("TTMOE_BASE") or (model_config or {}).get("base") or ""
    return RouterModel(RoutedModel.load(folder, find_base(identity, place)))


def load_folder(folder: Path) -> RouterModel:
    """The model in a registered folder, on the base that the folder's MLmodel file names."""
    import yaml

    described = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    return _load_pyfunc(str(folder), described.get("config"))


def find_base(identity: dict[str, Any], place: str) -> Base:
    """The base of that identity in the folder ``place``."""
    fix = 'give its folder: load_model(uri, model_config={"base": folder}), or the variable TTMOE_BASE'
    if not place or not Path(place).is_dir():
        raise InputError(f"base {identity['id']!r} is not at {place!r}", where="base", fix=fix)
    if (digest := digest_folder(Path(place))) != identity["digest"]:
        wanted = f"{identity['id']!r} ({identity['digest'][:12]})"
        raise InputError(f"{place} holds base {digest[:12]}, not {wanted}", where="base", fix=fix)
    return Base(**identity, folder=place)
