"""Exchange: one request and its answer, as a handler sees them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hostler.core.errors import HostlerError, envelope
from hostler.wire.direct import can_go_past
from hostler.wire.http1 import STATUS_LINES, Fields, Head, field_lines
from hostler.wire.identity import Identity

if TYPE_CHECKING:
    from hostler.wire.connection import ServerConnection


class Request(Head):
    """A whole request: its head, its body, and the id its answer will carry.

    is_known: an equal head was judged good before, but for its length.
    """

    __slots__ = ("body", "is_known", "request_id")

    def __init__(
        self,
        method: str,
        target: bytes,
        version: int,
        headers: Fields,
        same: Head | None = None,
    ) -> None:
        super().__init__(method, target, version, headers, same)
        self.body = b""
        self.request_id = ""
        self.is_known = same is not None


class Exchange:
    """One request and its answer; handed to the handler when the body is complete.

    An answer is either one `send` (or `send_error`), or `start`, any number of `write`, and `end`
    or `abort`. Once the answer has ended or the client has gone, every method does nothing.

    request: complete and checked.
    client: the peer's address, for logs and limits only, never for trust.
    on_gone: the client left before the answer ended; called at most once.
    on_pause, on_resume: the client reads too slowly; what is written meanwhile is kept in memory.

    Raises (start, write, send):
        RuntimeError: called in the wrong order; ValueError: a header that cannot be sent.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_connection",
        "_keep",
        "_left",
        "_started",
        "client",
        "on_gone",
        "on_pause",
        "on_resume",
        "request",
    )

    def __init__(self, connection: "ServerConnection", request: Request, client: str) -> None:
        self.request = request
        self.client = client
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self._connection: ServerConnection | None = connection
        self._started = False
        self._chunked = False
        self._bodiless = False
        self._keep = True
        self._left: int | None = None

    @property
    def is_over(self) -> bool:
        """Has the answer ended, or the client gone?"""
        return self._connection is None

    @property
    def peer(self) -> Identity | None:
        """Who asks, by a certificate of our authority; None: somebody without one, or it is over."""
        return self._connection.peer if self._connection is not None else None

    @property
    def is_started(self) -> bool:
        """Has a byte of the answer been sent?"""
        return self._started

    def send(
        self,
        status: int,
        body: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        lines: bytes = b"",
    ) -> None:
        """Send a whole answer. Length, date, request id and connection headers are added here.

        lines: more headers, as `field_lines` made them before.
        """
        connection = self._connection
        if connection is None:
            return
        connection.write(self._head(connection, status, headers, len(body), lines, body))
        self._finish(connection, self._keep)

    def send_error(self, error: HostlerError) -> None:
        """Send an error object; after `start` it is too late, and the answer is aborted instead."""
        if self._started:
            self.abort()
            return
        self.send(error.http_status, envelope(error), error_headers(error))

    def start(
        self,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        length: int | None,
        lines: bytes = b"",
    ) -> None:
        """Send the head of an answer whose body follows. length: None for chunks. lines: as in `send`."""
        connection = self._connection
        if connection is not None:
            connection.write(self._head(connection, status, headers, length, lines))

    def write(self, data: bytes) -> None:
        """Send a part of the body; framed when chunked."""
        connection = self._connection
        if connection is None or not data:
            return
        if not self._started:
            raise RuntimeError("write before start")
        if self._bodiless:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.abort()
                raise RuntimeError("the body is longer than the declared length")
        connection.write(data)

    def pass_on(self, frames: bytes) -> bool:
        """Send whole chunks as they are framed already. False: this answer is not framed by chunks."""
        connection = self._connection
        if connection is None or not self._chunked:
            return False
        connection.write(frames)
        return True

    def way(self) -> asyncio.Transport | None:
        """The client's transport, if whole chunks may be written to it past us."""
        connection = self._connection
        if connection is None or not self._chunked:
            return None
        transport = connection.transport
        return transport if can_go_past(transport) and not transport.is_closing() else None

    def end(self) -> None:
        """End the answer. A body shorter than the declared length is an abort."""
        connection = self._connection
        if connection is None:
            return
        if not self._started:
            raise RuntimeError("end before start")
        if self._left:
            self.abort()
            return
        if self._chunked:
            connection.write(b"0\r\n\r\n")
        self._finish(connection, self._keep)

    def abort(self) -> None:
        """Send what was written, then close without the last chunk: the client sees a failure."""
        connection = self._connection
        if connection is not None:
            self._finish(connection, keep=False)

    # Private

    def _head(
        self,
        connection: "ServerConnection",
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        length: int | None,
        lines: bytes,
        body: bytes = b"",
    ) -> bytes:
        """Return the head of the answer, and its body if it may have one; note how that is framed."""
        if self._started:
            raise RuntimeError("this answer has already been started")
        if headers:
            lines = field_lines(headers) + lines
        self._started = True
        request = self.request
        is_empty = status == 204 or status == 304
        self._bodiless = is_empty or request.method == "HEAD"
        keep = request.keep_alive and not connection.server.is_draining
        if is_empty:
            framing = b""
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
            self._left = None if self._bodiless else length
        elif request.version == 1:
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = not self._bodiless
        else:
            framing, keep = b"", False
        self._keep = keep
        if not keep:
            framing += b"connection: close\r\n"
        elif request.version == 0:
            framing += b"connection: keep-alive\r\n"
        server = connection.server
        said = b"" if self._bodiless else body
        if server.is_bare:
            return b"%b%b%b\r\n%b" % (STATUS_LINES[status], framing, lines, said)
        cors = server.cors
        if cors is not None:
            framing += cors.lines(request)
        return b"%b%bx-request-id: %b\r\n%b%b\r\n%b" % (
            STATUS_LINES[status],
            server.common_headers,
            request.request_id.encode(),
            framing,
            lines,
            said,
        )

    def _finish(self, connection: "ServerConnection", keep: bool) -> None:
        self._connection = None
        self.on_gone = self.on_pause = self.on_resume = None
        connection.finish(keep)

    def detach(self) -> "Callable[[], None] | None":
        """For the connection: the client has gone. Returns whom to tell."""
        told, self.on_gone = self.on_gone, None
        self._connection = None
        self.on_pause = self.on_resume = None
        return told


def error_headers(error: HostlerError) -> Fields:
    """Return the headers of an error's answer: always `retry-after` for 429 and 503."""
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if error.retry_after_s is not None or error.http_status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, error.retry_after_s or 1)))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(allow := error.facts.get("allow"), str):
        headers.append((b"allow", allow.encode()))
    return headers
