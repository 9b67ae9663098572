"""An MLflow store: opening it, its experiments, and helpers for names, tags and paged queries."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    """A library in the store.

    Attributes:
        name: Name of the library.
        last_run: When its newest ``ttmoe run`` started; None if there is none.
    """

    name: str
    last_run: datetime | None


@dataclass(frozen=True)
class Store:
    """An open MLflow store.

    Attributes:
        client: MLflow's client.
        uri: ``sqlite:///file``, a database URI, or the ``http(s)`` URI of a tracking server.
        artifact_root: Folder for artifacts; with a tracking server, for downloaded copies of them.
        experiment_ids: Ids of the experiments that ``experiment`` returned, by name.
        artifact_uris: URIs of the artifacts of runs that this process started, by run id. Both spare a request for
            each expert, and are shared by copies of the store.
    """

    client: MlflowClient
    uri: str
    artifact_root: Path
    experiment_ids: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    artifact_uris: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_remote(self) -> bool:
        """Whether the store is a tracking server, which stores the artifacts itself."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def may_duplicate(self) -> bool:
        """Whether something can exist twice although it is created once.

        MLflow's client repeats a request to a tracking server if the response was lost; and drivers on several
        machines, each with a lock of its own, can share any store but a SQLite file.
        """
        return sqlite_path(self.uri) is None

    def experiment(self, library: str, *, search: bool = False) -> Experiment:
        """Return the library's experiment. Create it if it is missing, and restore it if it is deleted.

        Args:
            library: Name of the library.
            search: Return the experiment of the library's searches instead.

        Raises:
            InputError: The library's name is not valid.
        """
        name = experiment_name(library, search=search)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            location = None if self.is_remote else (self.artifact_root / name).as_uri()
            create_once(lambda: self.client.create_experiment(name, location, {TAG + "library": library}))
            return self.experiment(library, search=search)
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
            return self.experiment(library, search=search)
        self.experiment_ids[name] = experiment.experiment_id
        return experiment

    def experiment_id(self, library: str, *, search: bool = False) -> str:
        """Return the id of the library's experiment, requested once; see ``experiment``."""
        known = self.experiment_ids.get(experiment_name(library, search=search))
        return known or self.experiment(library, search=search).experiment_id

    def find_experiment(self, library: str, *, search: bool = False) -> Experiment | None:
        """Return the library's experiment, or None if it is missing or deleted. Nothing is changed in the store."""
        experiment = self.client.get_experiment_by_name(experiment_name(library, search=search))
        return experiment if experiment is not None and experiment.lifecycle_stage == "active" else None


def open_store(uri: str, artifact_root: Path) -> Store:
    """Open the store at ``uri``; a missing SQLite file is created.

    Args:
        uri: ``sqlite:///file``, a database URI, or the ``http(s)`` URI of a tracking server.
        artifact_root: Folder for artifacts; with a tracking server, for downloaded copies of them.

    Raises:
        InputError: The store cannot be opened.
    """
    root = artifact_root.absolute()
    if path := sqlite_path(uri):
        uri = f"sqlite:///{path}"
        return Store(open_sqlite(path, root, lambda: MlflowClient(uri, uri)), uri, root)
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif not uri.startswith(_DATABASES):
        raise InputError(
            f"{_without_password(uri)} is not an MLflow store",
            where=_WHERE,
            fix="use sqlite:///file, http(s)://server, or a postgresql, mysql or mssql URI",
        )
    try:
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # database drivers, servers and MLflow raise different types
        raise InputError(
            f"the MLflow store at {_without_password(uri)} cannot be used: {_first_line(error)}",
            where=_WHERE,
            fix="check the address, your permissions, and that the MLflow versions are compatible",
        ) from error
    return Store(client, uri, root)


def experiment_name(library: str, *, search: bool = False) -> str:
    """Return the name of the experiment of a library or of its searches. Raise InputError if it is not valid."""
    check_name(library, "library")
    return f"{library}.search" if search else library


def check_name(name: str, what: str) -> None:
    """Raise InputError unless ``name`` can be used in a model's name, a path and a query.

    Args:
        name: The name to check.
        what: What the name denotes, for the error message.
    """
    if not _NAME.fullmatch(name):
        fix = "use up to 120 letters, digits, _ . and -, starting with a letter or digit"
        raise InputError(f"invalid {what} {name!r}", where=what, fix=fix)


def ignore_missing(call: Callable[[], Any]) -> Any:
    """Return the result of ``call()``, or None if MLflow reports that the object does not exist.

    A deletion can be sent twice: MLflow's client repeats a request if the response was lost.
    """
    try:
        return call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None


def create_once(create: Callable[[], Any]) -> bool:
    """Call ``create()`` and return whether it created the object; False if MLflow reports that it exists."""
    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def all_pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield every entry of a paged query.

    Args:
        search: Returns the page for a page token; None requests the first page.
    """
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def to_mlflow_tags(tags: dict[str, Any]) -> dict[str, str]:
    """Return tags as text, with the prefix ``ttmoe.`` added to keys other than MLflow's own (``mlflow.*``)."""
    return {key if key.startswith(("mlflow.", TAG)) else TAG + key: str(value) for key, value in tags.items()}


def to_datetime(milliseconds: int) -> datetime:
    """Convert MLflow's milliseconds since the epoch to a time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def libraries(store: Store) -> list[Library]:
    """Return every library in the store, sorted by newest run first."""
    entries = []
    for experiment in all_pages(lambda token: store.client.search_experiments(page_token=token)):
        name = experiment.tags.get(TAG + "library")
        if name != experiment.name:  # the experiment of a library's searches has the same tag
            continue
        runs = store.client.search_runs(
            [experiment.experiment_id],
            f"tags.`{TAG}kind` = 'run'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        entries.append(Library(name, to_datetime(runs[0].info.start_time) if runs else None))
    return sorted(entries, key=lambda library: library.last_run or datetime.fromtimestamp(0, UTC), reverse=True)


def _check_server(uri: str) -> None:
    """Request the server's health page once, because MLflow's client can retry a wrong address for minutes."""
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()  # a server responds; the first real request shows whether it accepts this client
    except (OSError, ValueError) as error:
        raise InputError(
            f"no MLflow server responds at {_without_password(uri)} ({_first_line(error)})",
            where=_WHERE,
            fix="start the server, or correct the address",
        ) from error


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
