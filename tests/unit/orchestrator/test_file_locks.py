import errno
import fcntl
import os

import pytest

from orchestrator.registry.sqlite_store import open_sqlite
from ttmoe.errors import InputError


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    """As Lustre mounted without flock, or NFS without its service."""

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(InputError, match="offers no file locks") as caught:
        open_sqlite(tmp_path / "mlflow.db", tmp_path, lambda: None, "storage.root")
    assert caught.value.where == str(tmp_path / "mlflow.db.lock")
