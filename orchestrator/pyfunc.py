"""MLflow's entry point to a registered router: ``mlflow.pyfunc.load_model`` and ``mlflow models serve``.

Registered routers name this module as their ``loader_module``: its name and that of ``_load_pyfunc`` must not change.
"""

from __future__ import annotations

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
    """A routed model with MLflow's ``predict`` interface.

    Args:
        model: The loaded model.
    """

    def __init__(self, model: RoutedModel) -> None:
        self.model, self.lock = model, Lock()

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Answer every row.

        Args:
            inputs: Column ``text``, and optionally ``second`` or ``choices`` (lists of options); or with an empty text
                ``messages`` (lists of messages). One row that holds lists, which MLflow makes of ``{"text": ["a",
                "b"]}``, is read as one row for each item.

        Returns:
            Columns ``task``, ``label``, ``confidence``, ``routing`` and ``scores`` (probability by label), with the
            rows and the index of ``inputs``.

        Raises:
            mlflow.MlflowException: If a row cannot be answered. MLflow's server responds with status 400.
        """
        import pandas as pd

        from orchestrator.predict.input_columns import ANSWER, InputColumns

        try:
            index, rows = _to_rows(inputs)
            items = [InputColumns().input_of(row, f"row {number}") for number, row in enumerate(rows, 1)]
            with self.lock:  # MLflow's server calls from several threads, and tokenizers are not thread-safe
                answers = self.model.predict(items)
        except InputError as error:
            from orchestrator.registry.bad_request import bad_request

            raise bad_request(error) from error
        cells = [[getattr(answer, name) for name in ANSWER] for answer in answers]
        return pd.DataFrame(cells, columns=list(ANSWER), index=index)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> RouterModel:
    """Load a registered router; called by MLflow.

    Args:
        path: Folder of the router.
        model_config: ``base``: folder of the base, unless the variable TTMOE_BASE is set. ``device``: ``auto`` (the
            default), ``cpu`` or ``cuda``.

    Raises:
        InputError: If the base is not found, or is not the one that the router was trained on.
    """
    from ttmoe.routed import RoutedModel

    folder, config = Path(path), model_config or {}
    device = choose_device(config.get("device") or "auto")
    return RouterModel(RoutedModel.load(folder, router_base(folder, config), device=device))


def _to_rows(inputs: pd.DataFrame) -> tuple[Any, list[dict[str, Any]]]:
    """Return the index and the rows; the index is None if one row of lists was expanded."""
    rows = [{str(name): _to_python(cell) for name, cell in row.items()} for row in inputs.to_dict("records")]
    if len(rows) != 1 or not isinstance(rows[0]["text"], list):
        return inputs.index, rows
    columns = {name: cells for name, cells in rows[0].items() if cells is not None}
    count = len(columns["text"])
    for name, cells in columns.items():
        if not isinstance(cells, list) or len(cells) != count:
            what = f"there are {count} texts, but not as many values in {name!r}"
            raise InputError(what, where="inputs", fix="send rows: dataframe_records, [{...}, {...}]")
    return None, [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _to_python(cell: Any) -> Any:
    """Convert NumPy arrays to lists, NumPy scalars to Python values, and missing values (NaN, pandas.NA) to None."""
    import numpy as np
    import pandas as pd

    if isinstance(cell, np.ndarray | np.generic):
        cell = cell.tolist()
    return None if not isinstance(cell, list | tuple | dict) and pd.isna(cell) else cell
