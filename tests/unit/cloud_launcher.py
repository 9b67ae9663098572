"""Stands in for `ray up | down | get-head-ip | dashboard`: python cloud_launcher.py FOLDER COMMAND ..."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

FOLDER, COMMAND = Path(sys.argv[1]), sys.argv[2]
HEAD, CALLS, REQUEST, BROKEN = (FOLDER / name for name in ("head", "calls", "request.json", "broken"))


class Dashboard(BaseHTTPRequestHandler):
    """The head's dashboard: it takes jobs, and has none."""

    def _answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        answers = {"/api/version": {"ray_version": version("ray"), "version": "4"}, "/api/jobs/": []}
        self._answer(answers.get(self.path, {}), 200 if self.path in answers else 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"]))
        REQUEST.write_bytes(request)
        self._answer({"job_id": "1", "submission_id": json.loads(request)["submission_id"]})

    def log_message(self, format: str, *arguments: object) -> None:
        pass


with CALLS.open("a") as calls:
    print(COMMAND, file=calls)
if BROKEN.exists() and COMMAND in BROKEN.read_text().split():
    sys.exit("botocore.exceptions.NoCredentialsError: Unable to locate credentials")
if COMMAND == "get-head-ip":
    print("10.0.0.1") if HEAD.exists() else sys.exit("RuntimeError: Head node of cluster (ttmoe) not found!")
elif COMMAND == "up":
    HEAD.touch()
elif COMMAND == "down":
    HEAD.unlink(missing_ok=True)
elif COMMAND == "dashboard":
    HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Dashboard).serve_forever()
