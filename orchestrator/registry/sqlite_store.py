"""Creation and upgrade of the SQLite file of an MLflow store, safe with several processes and after a crash.

If several processes open an empty database at once, all run MLflow's migrations and corrupt it. Therefore the file is
created under another name while a file lock is held, and then renamed: a file with the final name is complete.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from mlflow.store.db import utils as migrations
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient

from orchestrator.config.store_address import sqlite_file, sqlite_uri
from orchestrator.registry.file_locks import lock_file
from ttmoe.errors import InputError

# It imports the scripts of all migrations, and MLflow asks again for each store that it opens.
migrations._get_latest_schema_revision = cache(migrations._get_latest_schema_revision)
_NO_STORE_FIX = "move it away, or choose another store"
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse")


def _make_parent_folder(db_uri: str) -> None:
    """Replace MLflow's function, which takes ``%25`` in the URI literally and so makes a second folder beside it."""
    if path := sqlite_file(db_uri):
        path.parent.mkdir(parents=True, exist_ok=True)


migrations._make_parent_dirs_if_sqlite = _make_parent_folder


def open_sqlite(path: Path, artifact_root: Path, connect: Callable[[], MlflowClient], where: str) -> MlflowClient:
    """Create or upgrade a store if needed, and connect to it.

    Args:
        path: The SQLite file.
        artifact_root: Default folder of artifacts, stored in a new file.
        connect: Returns a client of the store.
        where: What named the store, for errors.

    Raises:
        InputError: The file cannot be created, is not an MLflow store, or was written by a newer MLflow.
    """
    head = migrations._get_latest_schema_revision()
    if _revision(path, where) != head:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                _create_or_upgrade(path, artifact_root, head, where)
        except OSError as error:
            raise InputError(
                f"the registry cannot be created at {path} ({error})",
                where=where,
                fix="choose a writable folder",
            ) from error
    return connect()


def _create_or_upgrade(path: Path, artifact_root: Path, head: str, where: str) -> None:
    revision = _revision(path, where)
    if revision is None:
        _create(path, artifact_root)
    elif revision != head:
        _upgrade(path, revision, where)


def _create(path: Path, artifact_root: Path) -> None:
    new = path.with_name(path.name + ".new")
    for leftover in (new, new.with_name(new.name + "-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(sqlite_uri(new), artifact_root.as_uri())._dispose_engine()
    if not _on_network(path):
        # With a write-ahead log a transaction waits for the disk once instead of several times: 93 ms instead of
        # 230 ms per expert on a busy machine. It needs memory shared by all readers, so it works on one host only.
        with closing(sqlite3.connect(new)) as database:
            database.execute("PRAGMA journal_mode=WAL")
    os.replace(new, path)


def _on_network(path: Path) -> bool:
    """Return whether the file is on a network file system. False if the mounts cannot be read."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    containing = [(len(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(containing, default=(0, ""))[1].startswith(_NETWORK_FILE_SYSTEMS)


def _upgrade(path: Path, revision: str, where: str) -> None:
    """Upgrade a file of an older MLflow and keep a backup, because migrations are not transactional."""
    if not _is_known(revision):
        raise InputError(
            f"{path} was written by a newer MLflow (schema {revision})",
            where=where,
            fix="upgrade mlflow, or choose another store",
        )
    backup = path.with_name(f"{path.name}.{revision}.bak")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    engine = migrations.create_sqlalchemy_engine_with_retry(sqlite_uri(path))
    try:
        migrations._initialize_tables(engine)
    finally:
        engine.dispose()


def _is_known(revision: str) -> bool:
    scripts = migrations.ScriptDirectory.from_config(migrations._get_alembic_config(db_url=""))
    return revision in {script.revision for script in scripts.walk_revisions()}


def _revision(path: Path, where: str) -> str | None:
    """Return the schema revision in the file, or None if the file is missing or empty."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an MLflow store", where=where, fix=_NO_STORE_FIX)
    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.DatabaseError, TypeError) as error:
        raise InputError(
            f"{path} is not an MLflow store ({error})",
            where=where,
            fix=_NO_STORE_FIX,
        ) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    lock = path.with_name(path.name + ".lock")
    with lock.open("a") as file:
        lock_file(file.fileno(), fcntl.LOCK_EX, lock)
        yield
