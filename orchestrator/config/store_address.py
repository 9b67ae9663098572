"""Which MLflow store a command uses, and how its address is shown without its secrets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_ROOT = Path("runs")
_SQLITE = "sqlite:///"
# SQLAlchemy accepts / and @ in a password, so everything up to the last @ is hidden. sqlite:/// has no user.
_USER = re.compile(r"(?<=://)(?!/).*@", re.DOTALL)
_PARAMETER = r"(?<=[?&])(\w*(?:password|passwd|pwd|token|secret)=)"
_SECRET_PARAMETER = re.compile(rf"{_PARAMETER}[^&]+", re.IGNORECASE)
# In a text, a URI ends at a blank or quote; but not within a password, which follows a colon that begins no port.
_USER_IN_TEXT = re.compile(r"(?<=://)(?!/)(?:[^\s'\"/:@]*:(?!\d+(?:[/\s'\"]|$)).*@|[^\s'\"]*@)")
_SECRET_PARAMETER_IN_TEXT = re.compile(rf"{_PARAMETER}[^&\s]*[^&\s'\"]", re.IGNORECASE)
_SHORTEST_SECRET = 4  # characters; a shorter one is hidden only within its URI, because it may be a part of any text
_in_use: set[str] = set()  # URIs, whose secrets no text may show


@dataclass(frozen=True)
class StoreAddress:
    """The address of an MLflow store. As text it is the address without secrets, and what named it.

    Attributes:
        root: The storage root, which contains the artifacts of an embedded store.
        uri: URI of the store; it may contain a password.
        source: What named the store: an option, a key of the config, or the variable MLFLOW_TRACKING_URI.
    """

    root: Path
    uri: str = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        """Remember the URI for ``mask_secrets``."""
        _in_use.add(self.uri)

    def __str__(self) -> str:
        return f"{mask_uri(self.uri)} ({self.source})"

    @property
    def artifacts(self) -> Path:
        """Folder of the artifacts."""
        return self.root.resolve() / "mlartifacts"

    @property
    def is_missing(self) -> bool:
        """Whether the store is an SQLite file that does not exist yet."""
        path = sqlite_file(self.uri)
        return path is not None and not path.exists()


def find_store(
    *,
    uri: str | None = None,
    root: Path | None = None,
    config_uri: str | None = None,
    config_root: Path = DEFAULT_ROOT,
) -> StoreAddress:
    """Return the store that a command uses: the first one that is named, in the order of the arguments.

    MLFLOW_TRACKING_URI comes after ``config_uri``, and the store in ``config_root`` last.

    Args:
        uri: The option ``--uri``.
        root: The option ``--root``.
        config_uri: ``tracking.uri`` of the config.
        config_root: ``storage.root`` of the config, or its default.
    """
    folder = root or config_root
    named = {
        "--uri": uri,
        "--root": sqlite_uri(root / "mlflow.db") if root else None,
        "tracking.uri": config_uri,
        TRACKING_VARIABLE: os.environ.get(TRACKING_VARIABLE),
        "storage.root": sqlite_uri(folder / "mlflow.db"),
    }
    source, address = next((source, address) for source, address in named.items() if address)
    return StoreAddress(folder, address, source)


def sqlite_uri(path: Path) -> str:
    """Return the URI of an SQLite file. A ``%`` or ``?`` in a path would otherwise be read as a part of the URI."""
    return _SQLITE + str(path.resolve()).replace("%", quote("%")).replace("?", quote("?"))


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of the file of a ``sqlite:///`` URI, or None for any other URI."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def mask_uri(uri: str) -> str:
    """Return a URI with its user name and passwords replaced by ``***``."""
    return _SECRET_PARAMETER.sub(r"\1***", _USER.sub("***@", uri))


def mask_secrets(text: str) -> str:
    """Return a text with user names and passwords in its URIs, and those of the stores in use, replaced by ``***``."""
    for uri in _in_use:
        text = text.replace(uri, mask_uri(uri))
        for secret in _secrets(uri):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return _SECRET_PARAMETER_IN_TEXT.sub(r"\1***", _USER_IN_TEXT.sub("***@", text))


def _secrets(uri: str) -> set[str]:
    """Return the passwords in a URI, and user and password together, as written and as sent."""
    pair = user.group()[:-1] if (user := _USER.search(uri)) else ""
    written = [password, pair] if (password := pair.partition(":")[2]) else []
    written += [match.group().partition("=")[2] for match in _SECRET_PARAMETER.finditer(uri)]
    return {text for secret in written for text in (secret, unquote(secret)) if len(text) >= _SHORTEST_SECRET}


def split_credentials(uri: str) -> tuple[str, str, str]:
    """Split the user out of the URI of a server.

    Returns:
        The URI without the user, the user name and the password; the last two are empty if the URI has none.

    Raises:
        ValueError: The URI is malformed.
    """
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    return urlunsplit(parts._replace(netloc=host)), unquote(name), unquote(password)
