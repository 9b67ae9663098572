"""What MLflow loads a registered router with: texts, pairs and choices in; tasks, labels and probabilities out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ttmoe.base import Base, digest_folder
from ttmoe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from ttmoe.routed import RoutedModel


class RouterModel:
    """A library's routed model behind MLflow's ``predict``."""

    def __init__(self, model: RoutedModel) -> None:
        self.model, self.lock = model, Lock()

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """The columns ``text`` and, where a row has them, ``second`` or ``choices`` (a list), to ``task``, ``label``,
        ``confidence``, ``routing`` and ``scores`` (label to probability), in the same order.

        Raises MLflow's exception for a wrong value, which its server answers with 400, where a row cannot be asked.
        """
        import pandas as pd

        from orchestrator.predicting.answers import ANSWER
        from orchestrator.predicting.columns import Columns

        try:
            index, rows = _rows(inputs)
            asked = [Columns().input_of(row, f"row {number}") for number, row in enumerate(rows, 1)]
            with self.lock:  # a server answers in several threads, and a tokenizer serves one at a time
                answers = self.model.predict(asked)
        except InputError as error:
            from orchestrator.registry.refusal import refusal

            raise refusal(error) from error
        found = [[getattr(answer, name) for name in ANSWER] for answer in answers]
        return pd.DataFrame(found, columns=list(ANSWER), index=index)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> RouterModel:
    """MLflow's entry point. ``path`` is the registered folder; ``model_config["base"]`` says where the base
    lies (or the variable TTMOE_BASE, which comes first), ``model_config["device"]`` where to compute.

    Raises InputError when the base is not there or is another than the router was trained on.
    """
    from ttmoe.routed import RoutedModel

    folder, config = Path(path), model_config or {}
    device = choose_device(config.get("device") or "auto")
    return RouterModel(RoutedModel.load(folder, _base_of(folder, config), device=device))


def registered_base(folder: Path) -> Base:
    """The base of the router in a registered folder: TTMOE_BASE, or where the folder's MLmodel file says."""
    import yaml

    described = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    return _base_of(folder, described.get("config") or {})


def find_base(identity: dict[str, Any], place: str) -> Base:
    """The base of that identity in the folder ``place``."""
    fix = 'give its folder: load_model(uri, model_config={"base": folder}), or the variable TTMOE_BASE'
    if not place or not Path(place).is_dir():
        raise InputError(f"base {identity['id']!r} is not at {place!r}", where="base", fix=fix)
    if (digest := digest_folder(Path(place))) != identity["digest"]:
        wanted = f"{identity['id']!r} ({identity['digest'][:12]})"
        raise InputError(f"{place} holds base {digest[:12]}, not {wanted}", where="base", fix=fix)
    return Base(**identity, folder=place)


def choose_device(device: str) -> str:
    """What ``auto`` means here: a GPU where there is one. Raises InputError for ``cuda`` without one."""
    import torch

    there = torch.cuda.is_available()
    if device.startswith("cuda") and not there:
        raise InputError("there is no GPU here that torch can use", where="device", fix="ask for cpu, or auto")
    return ("cuda" if there else "cpu") if device == "auto" else device


def _base_of(folder: Path, config: dict[str, Any]) -> Base:
    identity = json.loads((folder / "router.json").read_text())["base"]
    return find_base(identity, os.environ.get("TTMOE_BASE") or config.get("base") or "")


def _rows(inputs: pd.DataFrame) -> tuple[Any, list[dict[str, Any]]]:
    """The index and the rows, with None for what is missing.

    MLflow takes a dict of lists, ``{"text": ["a", "b"]}``, for one row of lists: it becomes as many rows.
    """
    columns = {str(name): [_plain(cell) for cell in inputs[name]] for name in inputs.columns}
    if len(inputs) != 1 or not isinstance(columns["text"][0], list):
        return inputs.index, list(_across(columns, len(inputs)))
    columns = {name: cells[0] for name, cells in columns.items() if cells[0] is not None}
    count = len(columns["text"])
    for name, cells in columns.items():
        if not isinstance(cells, list) or len(cells) != count:
            raise InputError(f"there are {count} texts, but not as many values in {name!r}", where="inputs",
                             fix="send rows: dataframe_records, [{...}, {...}]")  # fmt: skip
    return None, list(_across(columns, count))


def _across(columns: dict[str, list[Any]], count: int) -> Iterator[dict[str, Any]]:
    return ({name: cells[row] for name, cells in columns.items()} for row in range(count))


def _plain(cell: Any) -> Any:
    """A cell as Python has it: arrays are lists, and what is missing, nan or pandas' own, is None."""
    import numpy as np
    import pandas as pd

    if isinstance(cell, np.ndarray | np.generic):
        cell = cell.tolist()
    return None if not isinstance(cell, list | tuple | dict) and pd.isna(cell) else cell
