"""A package index (PEP 503) and file server on loopback that can misbehave as told."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class LocalIndex:
    """Serves the wheels of a folder at /simple/NAME/ and its files at /files/NAME.

    status: answer every file request so. cut_at: end the connection after so many bytes, `cuts` times.
    pause: hold file bodies after the first piece until it is set. wrong_hash: announce another one.
    lie: send other bytes of the same length. etag: sent with files, with Range honoured.
    length_told: announce the length of a body, rather than end the connection after it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.simple_status = 200
        self.cut_at: int | None = None
        self.cuts = 0
        self.pause: threading.Event | None = None
        self.wrong_hash = False
        self.lie = False
        self.etag = '"v1"'
        self.redirect = ""
        self.length_told = True
        self.requests: list[tuple[str, str]] = []  # path, Range
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes pip use this index alone, quickly, and no configuration of the machine."""
        return {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": f"http://somebody:hunter2@127.0.0.1:{self.port}/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_RETRIES": "0",
            "PIP_DEFAULT_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def downloads(self) -> int:
        return sum(path.startswith("/files/") for path, _ in self.requests)

    @contextmanager
    def running(self) -> Iterator["LocalIndex"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            if self.pause is not None:
                self.pause.set()
            server.shutdown()
            thread.join(10)
            server.server_close()


# Private


def _handler(index: LocalIndex) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_error(405)

        def do_GET(self) -> None:
            index.requests.append((self.path, self.headers.get("range", "")))
            if self.path.startswith("/simple/"):
                self._simple(self.path.split("/")[2])
            elif self.path.startswith("/files/"):
                self._file(index.folder / self.path.split("/")[2])
            else:
                self.send_error(404)

        def _simple(self, name: str) -> None:
            wheels = [
                path
                for path in sorted(index.folder.glob("*.whl"))
                if path.name.split("-")[0].replace("_", "-") == name
            ]
            if index.simple_status != 200 or not wheels:
                self.send_error(index.simple_status if index.simple_status != 200 else 404)
                return
            links = []
            for path in wheels:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                digest = "0" * 64 if index.wrong_hash else digest
                links.append(f'<a href="/files/{path.name}#sha256={digest}">{path.name}</a>')
            self._send(200, f"<html><body>{''.join(links)}</body></html>".encode(), "text/html")

        def _file(self, path: Path) -> None:
            if index.status != 200:
                self.send_error(index.status)
                return
            if index.redirect:
                self.send_response(302)
                self.send_header("Location", index.redirect)
                self.end_headers()
                return
            content = path.read_bytes()
            if index.lie:
                content = bytes(len(content))
            start = 0
            wanted = self.headers.get("range", "")
            if wanted and self.headers.get("if-range") == index.etag:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers = {"ETag": index.etag} if index.etag else {}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206 if start else 200, content[start:], "application/zip", headers)

        def _send(
            self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if index.length_told:
                self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if kind == "text/html":
                self.wfile.write(body)
                return
            if index.cut_at is not None and index.cuts > 0:
                index.cuts -= 1
                self.wfile.write(body[: index.cut_at])
                return
            try:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if index.pause is not None:
                    index.pause.wait(60)
                self.wfile.write(body[len(body) // 2 :])
            except OSError:
                pass  # the client left

    return Handler
