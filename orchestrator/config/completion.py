"""The setting ``on_end``: what a run calls when it has ended, a URL or a shell command."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from orchestrator.config.store_address import mask_secrets
from workers.data.validation import setting_error

_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):/")
_HTTP_URL = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)


def is_url(on_end: str) -> bool:
    """Return whether ``on_end`` is a URL; otherwise it is a command."""
    return _HTTP_URL.fullmatch(on_end) is not None


def mask_on_end(on_end: str) -> str:
    """Return ``on_end`` for an output, of URLs the host alone: the path of a webhook is often its secret."""
    return mask_secrets(_HTTP_URL.sub(lambda url: _mask_path(url.group()), on_end))


def _mask_path(url: str) -> str:
    try:
        parts = urlsplit(url)
        place = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:  # such as a password with a slash
        return f"{url.partition('://')[0]}://***"
    hides = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    return f"{parts.scheme}://{place}/***" if hides else url


def _check_on_end(on_end: str) -> str:
    """Refuse what is neither a URL nor a command. No message shows the value, which may be secret."""
    text = on_end.strip()
    if not text or "\0" in text:
        raise setting_error("a command is empty, or has a null character", fix="give a command or an http(s) URL")
    if scheme := _SCHEME.match(text):
        if scheme[1].lower() not in ("http", "https"):
            what = f"`{scheme[1]}` is not a scheme that a run can call"
            raise setting_error(what, fix="write https://HOST/PATH, or a command")
        if not is_url(text) or not _has_host(text):
            raise setting_error("the URL is not valid", fix="write https://HOST/PATH, without blanks and quotes")
    return text


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


OnEnd = Annotated[str, AfterValidator(_check_on_end)]
