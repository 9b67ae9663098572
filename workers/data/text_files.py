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
_MARKS = {  # those of UTF-32 first: one of them begins with one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_TESTED_BYTES = 100
_LINE_END = re.compile(rb"\r\n|\r|\n")
UTF_8 = "utf-8"
ENCODING_FIX = "use for example utf-8 or latin-1"


def file_text(path: Path, encoding: str = UTF_8) -> str:
    """Return the text of a file, decompressed if it was made by gzip, whatever its name, and without a mark.

    Args:
        path: The file.
        encoding: Its encoding. Where this is UTF-8, UTF-16 and UTF-32 are read too, see ``detected_encoding``.

    Raises:
        InputError: If it cannot be decompressed or decoded; the error contains the line.
    """
    data = decompressed(path)
    if codecs.lookup(encoding).name == UTF_8:
        encoding = detected_encoding(data)
    fix = "set the source's `format`, or its `encoding`, if it is a text file" if b"\0" in data[:1000] else ""
    return decode_text(data, encoding, str(path), fix=fix).removeprefix("\ufeff")


def is_text_encoding(name: str) -> bool:
    """Return whether Python knows an encoding of text by this name."""
    try:
        "a".encode(name)  # of a codec that makes no text, such as hex, this is a LookupError
    except (LookupError, ValueError):
        return False
    return True


def detected_encoding(data: bytes) -> str:
    """Return ``utf-8``, or another encoding of Unicode that the first bytes of a text tell.

    Spreadsheets mark UTF-16, which they call Unicode text. Without its mark, most texts in it have a zero in every
    second byte.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    first = data[:_TESTED_BYTES]
    zeros = [first[start::2].count(0) for start in (0, 1)]
    if 4 * min(zeros) < max(zeros) > len(first) / 4:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return UTF_8


def is_plain(first: bytes, encoding: str = UTF_8) -> bool:
    """Return whether a file in this encoding that begins with these bytes is in UTF-8 and not compressed."""
    is_utf_8 = codecs.lookup(encoding).name == UTF_8 and detected_encoding(first) == UTF_8
    return is_utf_8 and not first.startswith(_GZIP_MARK)


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


def decompressed(path: Path) -> bytes:
    """Return the content of a file; raise InputError if it was made by gzip and cannot be decompressed."""
    data = path.read_bytes()
    if not data.startswith(_GZIP_MARK):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        what = f"the file cannot be decompressed: {error}"
        raise InputError(what, where=str(path), fix="copy or download it again") from error
