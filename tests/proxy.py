"""HTTP proxy for tests that can refuse connections and lose responses to requests that the server has processed."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READS = ("GET", "HEAD")


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]


class Proxy:
    """Proxy of the server on ``port``; a context manager.

    Attributes:
        changes: Requests that change something, as ``METHOD path``.
        loses: Called with such a request and its body after the server processed it. If it returns True, the response
            is lost: the client sees a closed connection.
    """

    def __init__(self, port: int) -> None:
        self.to, self.port = port, free_port()
        self.changes: list[str] = []
        self.loses: Callable[[str, bytes], bool] = lambda change, body: False
        self._server: _Server | None = None

    def __enter__(self) -> Proxy:
        self.restore()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_cut(self) -> bool:
        return self._server is None

    def cut(self) -> None:
        """Refuse new connections and close the existing ones."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()
            server.drop()

    def restore(self) -> None:
        if self._server is None:
            self._server = _Server(self)
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, proxy: Proxy) -> None:
        self.proxy, self.open = proxy, set[socket.socket]()
        super().__init__(("127.0.0.1", proxy.port), _Handler)

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        self.open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def drop(self) -> None:
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # already closed
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections, which the tests cause on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # send headers and body in one packet

    def forward(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self._body()
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.to, timeout=60)
        try:
            try:
                upstream.request(self.command, self.path, body, dict(self.headers.items()))
                response = upstream.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException):  # the server is down: respond as a gateway does
                self.send_error(502)
                return
        finally:
            upstream.close()
        change = f"{self.command} {self.path.partition('?')[0]}"
        if self.command not in READS and not change.endswith("/search"):
            proxy.changes.append(change)
            if proxy.loses(change, body):
                self.close_connection = True
                return
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":  # empty files are sent in chunks
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del self.headers["Transfer-Encoding"]
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = forward

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
