"""The console's files, as they are in the package: read and compressed once, when the first is asked for."""

import gzip
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hostler.core.errors import NotFound

# Nothing but our own files and our own addresses; no inline script or style, no frame around us.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


_KINDS = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "txt": "text/plain",
}


def console_routes() -> list[Route]:
    """The page at `/` and what it loads below `/console/`."""
    return [Route(path, _show, methods=["GET"]) for path in ("/", "/console/{path:path}")]


# Private


class _File:
    """One file, ready to be sent."""

    def __init__(self, path: str, data: bytes) -> None:
        self._data, self._small = data, gzip.compress(data, 9, mtime=0)
        self._tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        self._kind = _KINDS[path.rpartition(".")[2]]

    def answer(self, request: Request) -> Response:
        headers = {
            "etag": self._tag,
            "cache-control": "no-cache",
            "vary": "accept-encoding",
            "content-security-policy": POLICY,
            "x-frame-options": "DENY",  # for what does not know frame-ancestors
        }
        if request.headers.get("if-none-match") == self._tag:
            return Response(b"", 304, headers)
        data = self._data
        if "gzip" in request.headers.get("accept-encoding", ""):
            data = self._small
            headers["content-encoding"] = "gzip"
        return Response(data, 200, headers, self._kind)


async def _show(request: Request) -> Response:
    path = request.url.path
    file = _files().get("/console/index.html" if path == "/" else path)
    if file is None:
        raise NotFound(f"the console has no file at {path[:200]}")
    return file.answer(request)


@cache
def _files() -> dict[str, _File]:
    """Each by its address."""
    return {f"/console/{path}": _File(path, data) for path, data in _walk(files("hostler.console"))}


def _walk(folder: Traversable, before: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{before}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _KINDS:
            yield before + entry.name, entry.read_bytes()
