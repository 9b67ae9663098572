"""A message about the end of this process, where a library ends it without one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_SCRIPT = 'read -r line || printf "%s\\n" "$0" >&2'


@contextmanager
def report_end(text: str) -> Iterator[None]:
    """Have a text on standard error if this process ends within the context.

    Ray's core ends it in the middle of a call when the object store of its node is gone, so that nothing in this
    process can say it. A shell does, which waits until a pipe from this process closes.

    Args:
        text: The message.
    """
    # In a session of its own, Ctrl-C does not reach it.
    shell = subprocess.Popen(["/bin/sh", "-c", _SCRIPT, text], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        shell.communicate(b"\n")
