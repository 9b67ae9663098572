"""Is it the store that is away, or is the request wrong?"""

from __future__ import annotations

import requests
from mlflow.exceptions import MlflowException
from requests.exceptions import ChunkedEncodingError
from sqlalchemy.exc import OperationalError

# What MLflow says where no answer came at all, or the server could not give one now.
_CODES = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
_TEXTS = (
    "Max retries exceeded",
    "Connection refused",
    "Connection aborted",
    "timed out",
    "Temporary failure in name resolution",
    "error code 502",
    "error code 503",
    "error code 504",
    "database is locked",
    "could not connect",
    "server closed the connection",
)


def is_unavailable(error: BaseException | None) -> bool:
    """Whether the same request may succeed later, unchanged."""
    while error is not None:
        if isinstance(error, (requests.ConnectionError, requests.Timeout, ChunkedEncodingError)):
            return True
        if isinstance(error, MlflowException) and error.error_code in _CODES:
            return True
        if isinstance(error, (MlflowException, OperationalError)) and any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False
