"""Conversion of a user's mistake to the exception that MLflow's model server expects."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ttmoe.errors import InputError


def bad_request(error: InputError) -> MlflowException:
    """Return an exception that MLflow's server sends as status 400 with the text of ``error``."""
    return MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE)
