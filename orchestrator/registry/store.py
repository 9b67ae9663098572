"""An MLflow store: opening it, its experiments, and helpers for names, tags and paged queries."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestrator.config.store_address import mask_secrets, mask_uri, split_credentials, sqlite_file, sqlite_uri
from orchestrator.registry.availability import is_unavailable
from orchestrator.registry.sqlite_store import open_sqlite
from ttmoe.errors import InputError

TAG = "ttmoe."
_SINGLE_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # seconds
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
        return sqlite_file(self.uri) is None

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

    def find_experiment(self, library: str, *, search: bool = False, restore: bool = False) -> Experiment | None:
        """Return the library's experiment, or None if it is missing or deleted.

        With ``restore`` a deleted one is restored with its runs; otherwise nothing is changed in the store.
        """
        experiment = self.client.get_experiment_by_name(experiment_name(library, search=search))
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            if not restore:
                return None
            self.client.restore_experiment(experiment.experiment_id)
        return experiment


def open_store(uri: str, artifact_root: Path, where: str) -> Store:
    """Open the store at ``uri``; a missing SQLite file is created.

    Args:
        uri: ``sqlite:///file``, a database URI, or the ``http(s)`` URI of a tracking server.
        artifact_root: Folder for artifacts; with a tracking server, for downloaded copies of them.
        where: What named the store, for errors.

    Raises:
        InputError: The store cannot be opened.
    """
    root = artifact_root.absolute()
    if path := sqlite_file(uri):
        uri = sqlite_uri(path)
        return Store(open_sqlite(path, root, lambda: MlflowClient(uri, uri), where), uri, root)
    is_server = uri.startswith(("http://", "https://"))
    shown = mask_uri(uri)
    if not is_server and not uri.startswith(_DATABASES):
        raise InputError(
            f"{shown} is not an MLflow store",
            where=where,
            fix="use sqlite:///file, http(s)://server, or a postgresql, mysql or mssql URI",
        )
    try:
        if is_server:
            uri = _move_credentials(uri)
        client = MlflowClient(uri, uri)
        with single_requests():
            client.search_experiments(max_results=1)
    except Exception as error:  # database drivers, servers and MLflow raise different types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if is_server and is_unavailable(error):
            what, fix = f"no MLflow server responds at {shown}", "start the server, or correct the address"
        else:
            what = f"the MLflow store at {shown} cannot be used"
            fix = "check the address, your permissions, and that the MLflow versions are compatible"
        raise InputError(f"{what} ({mask_secrets(reason)})", where=where, fix=fix) from error
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


def _move_credentials(uri: str) -> str:
    """Move a server's user and password from its URI to MLflow's variables, and return the URI without them.

    MLflow's client names the URI in its errors, and processes that this one starts inherit the variables.
    """
    address, user, password = split_credentials(uri)
    if not (user and password):
        return uri
    os.environ.update(MLFLOW_TRACKING_USERNAME=user, MLFLOW_TRACKING_PASSWORD=password)
    return address


@contextmanager
def single_requests() -> Iterator[None]:
    """Let MLflow's client send each request once within the context, because a wrong address must not take minutes."""
    before = {name: os.environ.get(name) for name in _SINGLE_REQUESTS}
    os.environ.update(_SINGLE_REQUESTS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
