"""Distinguish an unavailable MLflow store from a wrong request."""

from __future__ import annotations

import requests
from mlflow.exceptions import MlflowException
from requests.exceptions import ChunkedEncodingError
from sqlalchemy.exc import OperationalError

_CODES = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
# Parts of the messages of MlflowException and OperationalError when no response arrived, or a gateway's error did.
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
    """Return whether the same request may succeed later, unchanged.

    Args:
        error: The exception that a store operation raised. Its causes and contexts are checked too.
    """
    while error is not None:
        if isinstance(error, (requests.ConnectionError, requests.Timeout, ChunkedEncodingError)):
            return True
        if isinstance(error, MlflowException) and error.error_code in _CODES:
            return True
        if isinstance(error, (MlflowException, OperationalError)) and any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False
