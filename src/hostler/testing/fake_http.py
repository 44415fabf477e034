"""The fake engine's own small HTTP/1.1 server, on httptools. It shares no code with the product's wire room,
so a fault there cannot hide itself here. It is strict about nothing: use it on loopback only.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests"}


class Request:
    """One request, whole."""

    __slots__ = ("body", "content_type", "keep_alive", "method", "path", "request_id")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.request_id = ""
        self.content_type = ""
        self.body = b""
        self.keep_alive = True


class Connection(asyncio.Protocol):
    """One client. Requests are served one after the other; pipelined ones wait."""

    def __init__(self, serve: Callable[["Connection", Request], None], close_after: int) -> None:
        """serve: answers a request through `send` and `finish`, at once or from a task."""
        self._serve = serve
        self._close_after = close_after
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._request = Request()
        self._url = b""
        self._body: list[bytes] = []
        self._busy = False
        self._answers = 0
        self._writable: asyncio.Event | None = None
        self.transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._waiting.clear()
        self.resume_writing()
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.send(whole(400, b'{"error":{"message":"not HTTP"}}'))
            self.close()

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # What httptools calls

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-request-id":
                self._request.request_id = value.decode("latin-1")
            case b"content-type":
                self._request.content_type = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.path = self._url.partition(b"?")[0].decode("latin-1")
        request.body = b"".join(self._body)
        request.keep_alive = self._parser.should_keep_alive()
        self._request, self._url, self._body = Request(), b"", []
        self._waiting.append(request)
        self._next()

    # What the engine calls

    def send(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    async def writable(self) -> None:
        """Wait until the client has read enough for more to be written."""
        if self._writable is not None:
            await self._writable.wait()

    def finish(self, request: Request) -> None:
        """This request is answered: go on with the next, or close."""
        self._busy = False
        self.task = None
        self._answers += 1
        if not request.keep_alive or self._answers == self._close_after:
            self.close()
        else:
            self._next()

    def close(self) -> None:
        """Close when everything is written."""
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Break off: on TCP the client's next read is an error; a Unix socket just ends."""
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            if sock.family != socket.AF_UNIX:
                at_once = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            self.transport.abort()

    def leave(self) -> None:
        """Close as soon as nothing is under way here."""
        self._close_after = self._answers + 1
        if not self._busy:
            self.close()

    # Private

    def _next(self) -> None:
        while self._waiting and not self._busy and self.transport is not None:
            self._busy = True
            self._serve(self, self._waiting.popleft())


def head(status: int, headers: str, content_type: str, length: int | None) -> bytes:
    """Return the head of an answer. length: None for a chunked one. headers: lines that end in CRLF."""
    reason = _REASONS.get(status, b"Status").decode()
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\n{framing}\r\n{headers}\r\n"
    )
    return lines.encode("latin-1")


def whole(
    status: int, body: bytes, headers: str = "", content_type: str = "application/json"
) -> bytes:
    """Return a whole answer."""
    return head(status, headers, content_type, len(body)) + body


def chunk(data: bytes) -> bytes:
    """Return data as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
