"""A proxy before an HTTP server: it can be cut and restored, and can lose answers to requests that were carried out."""

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
    """Passes requests on to ``port``; a context manager.

    ``changes`` lists the requests that change something, as ``METHOD path``. ``loses(change, body)`` says, once the
    server has carried one out, whether its answer gets lost: the client sees a connection that was closed.
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
        """Refuse connections, and drop those that there are."""
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
            except OSError:  # it ended by itself
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one piece

    def pass_on(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self._body()
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.to, timeout=60)
        try:
            try:
                upstream.request(self.command, self.path, body, dict(self.headers.items()))
                answer = upstream.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):  # the server behind is away: what a gateway says then
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
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":  # as empty files come
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del self.headers["Transfer-Encoding"]
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
