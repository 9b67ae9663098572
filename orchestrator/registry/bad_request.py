"""What a user gave wrong, said as MLflow says it."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ttmoe.errors import InputError


def bad_request(error: InputError) -> MlflowException:
    """The exception that MLflow's server answers with status 400 and the error's own words."""
    return MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE)
