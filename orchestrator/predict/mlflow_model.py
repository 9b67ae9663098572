"""What MLflow loads a registered router with: texts, pairs and choices in; tasks, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from orchestrator.experts.base_folder import router_base
from ttmoe.base import choose_device
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

        from orchestrator.predict.input_columns import ANSWER, InputColumns

        try:
            index, rows = _rows(inputs)
            asked = [InputColumns().input_of(row, f"row {number}") for number, row in enumerate(rows, 1)]
            with self.lock:  # a server answers in several threads, and a tokenizer serves one at a time
                answers = self.model.predict(asked)
        except InputError as error:
            from orchestrator.registry.bad_request import bad_request

            raise bad_request(error) from error
        found = [[getattr(answer, name) for name in ANSWER] for answer in answers]
        return pd.DataFrame(found, columns=list(ANSWER), index=index)


def load_router_model(path: str, model_config: dict[str, Any] | None = None) -> RouterModel:
    """MLflow's entry point. ``path`` is the registered folder; ``model_config["base"]`` says where the base
    lies (or the variable TTMOE_BASE, which comes first), ``model_config["device"]`` where to compute.

    Raises InputError when the base is not there or is another than the router was trained on.
    """
    from ttmoe.routed import RoutedModel

    folder, config = Path(path), model_config or {}
    device = choose_device(config.get("device") or "auto")
    return RouterModel(RoutedModel.load(folder, router_base(folder, config), device=device))


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
