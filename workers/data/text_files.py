"""The text of data files: decompressed, decoded and in lines. Training and prediction read them by the same rules."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from ttmoe.errors import InputError

GZIP_ENDING = ".gz"
_GZIP_MARK = b"\x1f\x8b"
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_UTF_8 = "utf-8"


def file_text(path: Path, encoding: str = _UTF_8) -> str:
    """Return the text of a file, decompressed if it was made by gzip, whatever its name, and without a mark.

    A file with the mark of UTF-16 is read as that where UTF-8 is expected: spreadsheets write it as "Unicode text".

    Args:
        path: The file.
        encoding: Its encoding.

    Raises:
        InputError: If it cannot be decompressed or decoded; the error contains the line.
    """
    data = _decompressed(path)
    if codecs.lookup(encoding).name == _UTF_8 and data.startswith(_UTF_16_MARKS):
        encoding = "utf-16"
    fix = "set the source's `encoding`, such as utf-16-le, or its `format`, if it is no text file"
    return decode_text(data, encoding, str(path), fix=fix if b"\0" in data[:1000] else "").removeprefix("\ufeff")


def is_plain(first: bytes) -> bool:
    """Return whether a file that begins with these bytes is neither compressed nor UTF-16."""
    return not first.startswith((_GZIP_MARK, *_UTF_16_MARKS))


def decode_text(data: bytes, encoding: str, path: str, line: int = 1, fix: str = "") -> str:
    """Decode a text or a line of it.

    Args:
        data: The text.
        encoding: Its encoding.
        path: Its file, for the error.
        line: Number of its first line, for the error.
        fix: What to do if it is not of this encoding.

    Raises:
        InputError: If it is not of this encoding.
    """
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        invalid = _LINE_END.split(data[start : start + 4], maxsplit=1)[0] or data[start : start + 1]
        where = f"{path}:{line + len(_LINE_END.findall(data[:start]))}"
        fix = fix or "set the source's `encoding`, for example latin-1, or convert the file to UTF-8"
        raise InputError(f"{invalid!r} is not valid {encoding}", where=where, fix=fix) from error


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of an encoded text with their ends: a line feed, a carriage return, or both."""
    return data.splitlines(keepends=True)


def text_lines(text: str) -> Iterator[str]:
    """Return the lines of a text with their ends, as ``split_lines``: texts may contain U+2028."""
    return io.StringIO(text, newline="")


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(_GZIP_MARK):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        what = f"the file cannot be decompressed: {error}"
        raise InputError(what, where=str(path), fix="copy or download it again") from error
