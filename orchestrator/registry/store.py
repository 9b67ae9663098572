"""One MLflow store: where it is, how it is opened, and its experiments."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.registry.sqlite_store import open_sqlite, sqlite_path
from ttmoe.errors import InputError

TAG = "ttmoe."
_WHERE = "storage.mlflow"
_DATABASES = ("postgresql", "mysql", "mssql")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")


@dataclass(frozen=True)
class Library:
    """A library in the store; ``last_run`` is when its last ``ttmoe run`` started, if there was one."""

    name: str
    last_run: datetime | None


@dataclass(frozen=True)
class Store:
    """An open store. ``artifact_root`` holds its artifacts, or copies of what was fetched from a server."""

    client: MlflowClient
    uri: str
    artifact_root: Path

    @property
    def is_remote(self) -> bool:
        """Whether a tracking server decides where artifacts lie."""
        return self.uri.startswith(("http://", "https://"))

    def experiment(self, library: str, *, search: bool = False) -> Experiment:
        """The experiment of the library, or of its searches; made when missing, restored when deleted."""
        name = experiment_name(library, search=search)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = None if self.is_remote else (self.artifact_root / name).as_uri()
            create_once(lambda: self.client.create_experiment(name, place, {TAG + "library": library}))
            return self.experiment(library, search=search)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
            return self.experiment(library, search=search)
        return found

    def find_experiment(self, library: str, *, search: bool = False) -> Experiment | None:
        """The same without making or changing anything."""
        found = self.client.get_experiment_by_name(experiment_name(library, search=search))
        return found if found is not None and found.lifecycle_stage == "active" else None


def open_store(uri: str, artifact_root: Path) -> Store:
    """Open the store at ``uri`` (``sqlite:///file``, a database, or a tracking server's address).

    Raises InputError when it cannot be opened, saying why.
    """
    root = artifact_root.absolute()
    if path := sqlite_path(uri):
        uri = f"sqlite:///{path}"
        return Store(open_sqlite(path, root, lambda: MlflowClient(uri, uri)), uri, root)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif not uri.startswith(_DATABASES):
        raise InputError(
            f"{_shown(uri)} is no MLflow store",
            where=_WHERE,
            fix="use sqlite:///file, http(s)://server, or a postgresql/mysql address",
        )
    try:
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # drivers, servers and MLflow each raise their own kinds
        raise InputError(
            f"the MLflow store at {_shown(uri)} cannot be used: {_first_line(error)}",
            where=_WHERE,
            fix="check the address, the rights and that its MLflow version fits this one",
        ) from error
    return Store(client, uri, root)


def experiment_name(library: str, *, search: bool = False) -> str:
    """What the library's experiment is called. Raises InputError for a name that cannot be one."""
    check_name(library, "library")
    return f"{library}.search" if search else library


def check_name(name: str, what: str) -> None:
    """Raise InputError unless ``name`` can be part of a model's name, a path and a filter."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name a {what}", where=what, fix="use letters, digits, _ . and -")


def ignore_missing(call: Callable[[], Any]) -> Any:
    """What ``call`` gives, or None where MLflow has no such thing (any more): a deletion may be sent twice."""
    try:
        return call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None


def create_once(create: Callable[[], Any]) -> None:
    """Run ``create``; that the thing is already there is as good."""
    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def all_pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Every entry of a search, page after page."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def to_mlflow_tags(tags: dict[str, Any]) -> dict[str, str]:
    """Tags as MLflow stores them: under our prefix (but for MLflow's own), as text."""
    return {key if key.startswith(("mlflow.", TAG)) else TAG + key: str(value) for key, value in tags.items()}


def to_datetime(milliseconds: int) -> datetime:
    """A point in time from MLflow's milliseconds."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def libraries(store: Store) -> list[Library]:
    """Every library in the store, the one that ran last first."""
    found = []
    for experiment in all_pages(lambda token: store.client.search_experiments(page_token=token)):
        name = experiment.tags.get(TAG + "library")
        if name != experiment.name:  # searches carry their library's tag too
            continue
        runs = store.client.search_runs(
            [experiment.experiment_id],
            f"tags.`{TAG}kind` = 'run'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        found.append(Library(name, to_datetime(runs[0].info.start_time) if runs else None))
    return sorted(found, key=lambda each: each.last_run or datetime.fromtimestamp(0, UTC), reverse=True)


def _probe(uri: str) -> None:
    """Ask for the server once, since MLflow's own client would retry a dead address for minutes."""
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()  # something answers; what it thinks of us shows at the first call
    except (OSError, ValueError) as error:
        raise InputError(
            f"no MLflow server answers at {_shown(uri)} ({_first_line(error)})",
            where=_WHERE,
            fix="start it, or correct the address",
        ) from error


def _shown(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)  # an address may carry a password


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
