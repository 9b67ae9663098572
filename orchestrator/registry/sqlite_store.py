"""The SQLite file of a store: made whole or not at all, and brought up to date by one process at a time.

Processes that open an empty database at once all run MLflow's migrations and break it. So the file is built
beside its place under a lock and renamed into it: a file that is there is a complete store, crash or not.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mlflow.store.db import utils as migrations
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient

from ttmoe.errors import InputError

_NETWORK = ("nfs", "cifs", "smb", "9p", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse")


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the file that a ``sqlite:///`` address names; None for other addresses."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def open_sqlite(path: Path, artifact_root: Path, connect: Callable[[], MlflowClient]) -> MlflowClient:
    """``connect()`` to the store in ``path`` once it is there with this MLflow's schema.

    Raises InputError for a file that is no database, or that a newer MLflow has written.
    """
    head = migrations._get_latest_schema_revision()
    if _revision(path) != head:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                _make_or_upgrade(path, artifact_root, head)
        except OSError as error:
            raise InputError(
                f"the registry cannot be made at {path} ({error})",
                where="storage.root",
                fix="choose a folder that can be written",
            ) from error
    return connect()


def _make_or_upgrade(path: Path, artifact_root: Path, head: str) -> None:
    found = _revision(path)
    if found is None:
        _make(path, artifact_root)
    elif found != head:
        _upgrade(path, found)


def _make(path: Path, artifact_root: Path) -> None:
    new = path.with_name(path.name + ".new")
    for left_over in (new, new.with_name(new.name + "-journal")):
        left_over.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", artifact_root.as_uri())._dispose_engine()
    if not _on_network(path):
        # With a write-ahead log a transaction waits for the disk once, not several times: 93 ms an expert and
        # not 230 on a busy machine. It needs memory shared by all who open the file, so one host only.
        with closing(sqlite3.connect(new)) as database:
            database.execute("PRAGMA journal_mode=WAL")
    os.replace(new, path)


def _on_network(path: Path) -> bool:
    """Whether the file lies where other hosts may open it too, as far as this system says."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    inside = [(len(place), kind) for place, kind in mounts if path.resolve().is_relative_to(place)]
    return max(inside, default=(0, ""))[1].startswith(_NETWORK)


def _upgrade(path: Path, found: str) -> None:
    """Bring an older MLflow's file up to date, keeping a copy of it: migrations are not transactional."""
    if not _knows(found):
        raise InputError(
            f"{path} was written by a newer MLflow (schema {found})",
            where="storage.root",
            fix="upgrade mlflow, or choose another storage.root",
        )
    backup = path.with_name(f"{path.name}.{found}.bak")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    engine = migrations.create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")
    try:
        migrations._initialize_tables(engine)
    finally:
        engine.dispose()


def _knows(revision: str) -> bool:
    scripts = migrations.ScriptDirectory.from_config(migrations._get_alembic_config(db_url=""))
    return revision in {script.revision for script in scripts.walk_revisions()}


def _revision(path: Path) -> str | None:
    """The schema revision in the file, or None when there is no file or an empty one."""
    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.DatabaseError, TypeError) as error:
        raise InputError(
            f"{path} is not an MLflow store ({error})",
            where="storage.root",
            fix="move it away, or choose another storage.root",
        ) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
