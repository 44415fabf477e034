"""A hub's file, by the real hub client against a hub of one file on loopback."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hostler.catalog.sources import FetchLimits, fetch_model, is_present
from hostler.core.errors import ModelSourceError
from tests.unit.catalog.files import gguf

pytest.importorskip("huggingface_hub")
CONTENT = gguf()
SOURCE = "hf:tiny/model@v1#sub/m.gguf"


class Hub(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        found = self.path == "/tiny/model/resolve/v1/sub/m.gguf"
        body = CONTENT if found else b"not here"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Error-Message", "Entry not found")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HUB_DISABLE_XET": "1",
        }
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def fetch(source: str, models: Path, hub: dict[str, str]) -> Path:
    limits = FetchLimits(reserve_bytes=0, stall_s=60, index_environment=hub)
    return asyncio.run(fetch_model(source, models, limits=limits))


def test_a_file_of_a_pinned_revision_arrives(hub: dict[str, str], tmp_path: Path) -> None:
    path = fetch(SOURCE, tmp_path, hub)
    assert path.name == "m.gguf"
    assert path.read_bytes() == CONTENT
    assert is_present(SOURCE, tmp_path) == path


def test_a_file_the_hub_has_not_is_an_error_with_advice(
    hub: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=r"hf:tiny/model: .*HF_TOKEN"):
        fetch("hf:tiny/model@v1#other.gguf", tmp_path, hub)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
