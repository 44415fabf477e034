"""Connection, Call and Sink: one exchange with an engine, seen from our side.

httptools (llhttp) reads the answers. It only collects while it is being fed; the sink is called
afterwards, once for all body bytes of a read, so no callback of ours runs inside the parser.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from hostler.wire.http1 import Fields

if TYPE_CHECKING:
    from hostler.wire.pool import Pool

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024  # of an answer's head, and of what comes before the body ends up here


class UpstreamLost(Exception):
    """The answer did not arrive, or not whole.

    refused: no connection came about, so the request was certainly not seen.
    sent_bytes: the server may have seen the request. got_bytes: a byte of the answer came.
    timed_out: a deadline of ours passed.
    """

    def __init__(
        self,
        message: str,
        *,
        refused: bool = False,
        sent_bytes: bool = False,
        got_bytes: bool = False,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.sent_bytes = sent_bytes
        self.got_bytes = got_bytes
        self.timed_out = timed_out


class UpstreamStatus(Exception):
    """The server answered with an error status. `body` is what it said."""

    def __init__(self, status: int, body: bytes, headers: Fields) -> None:
        super().__init__(f"answered {status}")
        self.status = status
        self.body = body
        self.headers = headers


class Sink(Protocol):
    """Who gets an answer: on_head, on_data..., then on_end or on_lost; nothing after `cancel`."""

    def on_head(self, status: int, headers: Fields) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_lost(self, error: UpstreamLost) -> None: ...


class Call:
    """One request under way. Ends once: by on_end, by on_lost, or by `cancel`."""

    __slots__ = ("connection", "is_over", "is_paused", "once", "request", "sent", "sink")

    def __init__(self, request: bytes, sink: Sink, *, once: bool = False) -> None:
        """once: it must not be sent a second time."""
        self.request = request
        self.sink = sink
        self.connection: Connection | None = None
        self.is_over = False
        self.is_paused = False
        self.once = once
        self.sent = False

    def cancel(self) -> None:
        """End the call at once: the connection is cut, so that the engine notices."""
        if self.is_over:
            return
        self.is_over = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.call = None
            connection.transport.abort()

    def pause(self) -> None:
        """Stop reading the answer; at most one read's bytes still come."""
        if not self.is_paused and not self.is_over:
            self.is_paused = True
            if self.connection is not None:
                self.connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.is_paused and not self.is_over:
            self.is_paused = False
            if self.connection is not None:
                self.connection.transport.resume_reading()

    def lose(self, message: str, *, refused: bool = False, got_bytes: bool = False) -> None:
        """For the pool: end the call as lost. Once sent, it is not `refused` whatever follows."""
        if self.is_over:
            return
        self.is_over = True
        self.connection = None
        self.sink.on_lost(
            UpstreamLost(
                message,
                refused=refused and not self.sent,
                sent_bytes=self.sent,
                got_bytes=got_bytes,
            )
        )


class Connection(asyncio.Protocol):
    """One connection of a pool. Carries one call at a time."""

    __slots__ = (
        "_delimited_by_close",
        "_got_bytes",
        "_head_bytes",
        "_headers",
        "_is_complete",
        "_is_head_due",
        "_keep",
        "_parser",
        "_pieces",
        "_pool",
        "_skips_body",
        "_status",
        "call",
        "idle_since_s",
        "is_proving",
        "proofs",
        "served",
        "transport",
    )

    transport: asyncio.Transport
    _delimited_by_close: bool
    _got_bytes: bool
    _head_bytes: int
    _is_complete: bool
    _is_head_due: bool
    _keep: bool
    _skips_body: bool
    _status: int

    def __init__(self, pool: "Pool") -> None:
        self.call: Call | None = None
        self.idle_since_s = 0.0
        self.is_proving = False
        self.proofs = 0  # how many of the answers served were proofs
        self.served = 0
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Fields = []
        self._pieces: list[bytes] = []
        self._reset()

    def send(self, call: Call) -> None:
        """Write a call's request; its answer comes on this connection."""
        self.call = call
        call.connection = self
        call.sent = True
        self._skips_body = call.request.startswith(b"HEAD ")
        self.transport.write(call.request)
        if call.is_paused:
            self.transport.pause_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:  # bytes that nobody asked for: the framing of what follows is unknown
            self.transport.abort()
            return
        self._got_bytes = True
        if not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._drop(f"the answer is not framed as it should be: {error}")
            return
        if self._is_head_due:
            self._is_head_due = False
            call.sink.on_head(self._status, self._headers)
            self._headers = []
        elif not self._status and self._head_bytes > HEAD_BYTES:
            self._drop("the answer's head is too long")
            return
        pieces = self._pieces
        if pieces and self.call is call:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
            call.sink.on_data(body)
        if self._is_complete and self.call is call:
            self._finish(call)

    def eof_received(self) -> None:
        """The server closes; that ends an answer that has no other end."""
        call = self.call
        if call is not None and self._delimited_by_close:
            self._keep = False
            self._finish(call)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        self._lose("the connection was closed" if error is None else f"connection lost: {error}")

    # httptools

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second answer to one request
            self._keep = False

    def on_status(self, status: bytes) -> None:
        pass

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._status = status
        self._is_head_due = True
        names = [name for name, _ in self._headers]
        has_framing = b"content-length" in names or b"transfer-encoding" in names
        if self._skips_body or status == 204 or status == 304:
            self._is_complete = True
            self._keep = not has_framing and self._parser.should_keep_alive()
        elif not has_framing:
            self._delimited_by_close = True

    def on_body(self, data: bytes) -> None:
        if not self._is_complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._status and not self._is_complete:
            self._is_complete = True
            self._keep = self._parser.should_keep_alive()
        elif not self._status:
            self._headers = []  # an interim answer (1xx)

    # Private

    def _reset(self) -> None:
        self._status = 0
        self._head_bytes = 0
        self._got_bytes = False
        self._is_head_due = False
        self._is_complete = False
        self._delimited_by_close = False
        self._keep = True
        self._skips_body = False

    def _finish(self, call: Call) -> None:
        """The answer is whole: give the connection back, then tell the sink."""
        self.call = None
        call.connection = None
        call.is_over = True
        keep = self._keep
        self._reset()
        self.served += 1
        if not keep:
            self.transport.close()
        else:
            if call.is_paused:
                self.transport.resume_reading()
            if not self.is_proving:
                self._pool.give_back(self)
        call.sink.on_end()

    def _drop(self, message: str) -> None:
        self.transport.abort()
        self._lose(message)

    def _lose(self, message: str) -> None:
        """Tell the call; or send it again when this was a used connection that said nothing."""
        call, self.call = self.call, None
        if call is None:
            return
        if self.served > self.proofs and not self._got_bytes and not call.once:
            call.once = True
            call.connection = None
            self._pool.connect(call)
            return
        call.lose(message, got_bytes=self._got_bytes)
