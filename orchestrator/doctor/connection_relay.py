"""A relay between the driver of a drill and its MLflow server, which drops the connections for a while."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

_CHUNK = 2**16


class ConnectionRelay:
    """Relay of TCP connections from a port of this machine to a server; a context manager.

    Args:
        host: Host of the server.
        port: Its port.

    Attributes:
        dropped: Number of connections that were asked for while it was cut.
    """

    def __init__(self, host: str, port: int) -> None:
        self.dropped = 0
        self._server, self._is_cut, self._open = (host, port), False, set[socket.socket]()

    def __enter__(self) -> ConnectionRelay:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.cut()

    @property
    def port(self) -> int:
        """The port at which it listens on 127.0.0.1."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Drop all connections, and each one that is asked for from now on."""
        self._is_cut = True
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Relay connections again."""
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._is_cut:
                self.dropped += 1
                client.close()
                continue
            try:
                server = socket.create_connection(self._server, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        """Copy until one side closes, then close both."""
        self._open.add(source)
        with source, suppress(OSError):
            while not self._is_cut and (data := source.recv(_CHUNK)):
                target.sendall(data)
        self._open.discard(source)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
