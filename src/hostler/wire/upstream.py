"""Connection and Call: one exchange with an engine, seen from our side.

How an answer is read is `wire/reply.py`; who gets it is `wire/sink.py`. The sink is called once for all
body bytes of a read; a sink that asks for it gets whole chunks as they were framed.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from hostler.wire.direct import PLAIN_READS, Direct, can_go_past
from hostler.wire.reply import (
    CHUNKED,
    CLOSE,
    HEAD_BYTES,
    LENGTH,
    NONE,
    BadReply,
    ChunkReader,
    Framing,
    ReplyHead,
    read_head,
    whole_chunks,
)
from hostler.wire.scan import leading_number
from hostler.wire.sink import Sink, UpstreamLost

if TYPE_CHECKING:
    from hostler.wire.pool import Pool

log = logging.getLogger(__name__)


class Call:
    """One request under way. Ends once: by on_end, by on_lost, or by `cancel`."""

    __slots__ = (
        "connection",
        "is_for_head",
        "is_over",
        "is_paused",
        "once",
        "request",
        "sent",
        "sink",
    )

    def __init__(self, request: bytes, sink: Sink, *, once: bool = False) -> None:
        """once: it must not be sent a second time."""
        self.request = request
        self.sink = sink
        self.connection: Connection | None = None
        self.is_over = False
        self.is_paused = False
        self.is_for_head = request.startswith(b"HEAD ")
        self.once = once
        self.sent = False

    def cancel(self) -> None:
        """End the call at once: the connection is cut, so that the engine notices."""
        if self.is_over:
            return
        self.is_over = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.end_direct()
            connection.call = None
            connection.transport.abort()

    def pause(self) -> None:
        """Stop reading the answer; at most one read's bytes still come."""
        if not self.is_paused and not self.is_over:
            self.is_paused = True
            if self.connection is not None:
                self.connection.end_direct()
                self.connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.is_paused and not self.is_over:
            self.is_paused = False
            if self.connection is not None:
                self.connection.transport.resume_reading()

    def catch_up(self) -> None:
        """Tell the sink what went past it until now."""
        connection = self.connection
        if connection is not None and connection.direct is not None:
            connection.note_passed(connection.direct)

    def lose(
        self,
        message: str,
        *,
        refused: bool = False,
        got_bytes: bool = False,
        timed_out: bool = False,
    ) -> None:
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
                timed_out=timed_out,
            )
        )


class Connection:
    """One connection of a pool. Carries one call at a time. An asyncio.Protocol by its methods."""

    __slots__ = (
        "_chunks",
        "_framing",
        "_got_bytes",
        "_keep",
        "_left",
        "_pending",
        "_plain",
        "_pool",
        "_turn",
        "call",
        "direct",
        "idle_since_s",
        "is_brief",
        "is_proving",
        "served",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: "Pool") -> None:
        self.call: Call | None = None
        self.idle_since_s = 0.0  # 0.0: it was never idle in the pool
        self.is_brief = False  # files are scarce (F67): it is not kept for a next request
        self.is_proving = False
        self.served = 0
        self.direct: Direct | None = None  # how its stream goes now, past us
        self._plain = 0  # reads in a row of plain chunks alone
        self._pool = pool
        self._turn = pool.turn
        self._pending = b""  # the beginning of a head
        self._framing: Framing | None = None  # None: the head is due
        self._left = 0
        self._chunks: ChunkReader | None = None
        self._got_bytes = False
        self._keep = True

    def send(self, call: Call) -> None:
        """Write a call's request; its answer comes on this connection."""
        self.call = call
        call.connection = self
        call.sent = True
        self._turn.write(self.transport, call.request)
        if call.is_paused:
            self.transport.pause_reading()

    # Streams that go directly

    def go_directly(self) -> None:
        """For the turn: from here on, if all that was read until now is written."""
        call = self.call
        if call is None or call.is_paused or self._plain < PLAIN_READS or self.direct is not None:
            return
        self._turn.catch_up()
        self._turn.flush()
        chunks = self._chunks
        is_plain = self._plain >= PLAIN_READS and chunks is not None and chunks.is_between
        if self.call is not call or not is_plain:
            return
        way = call.sink.way()
        if way is None or self.transport.is_closing() or not can_go_past(self.transport):
            return
        if way.client.get_write_buffer_size():  # what was read just now; not so the next time
            self._plain = PLAIN_READS - 1
            return
        try:
            self.direct = Direct(self._turn.watch(), self, way)
        except OSError:  # no more files
            return

    def note_passed(self, direct: Direct) -> None:
        """Tell the sink what went past it."""
        count = direct.passed()
        if count >= 0 and self.call is not None:
            self.call.sink.on_passed(count)

    def end_direct(self) -> None:
        """Its stream goes the usual way again, and what is read next comes here."""
        direct, self.direct = self.direct, None
        if direct is not None:
            self._plain = 0
            self.note_passed(direct)
            direct.end()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.call is None:  # nobody asked for it: what it belongs to must not be asked now
            self.transport.abort()
        else:
            self._turn.answered(self, data)

    def take(self, data: bytes) -> None:
        """For the turn: this was read."""
        call = self.call
        if call is None:  # bytes that nobody asked for: the framing of what follows is unknown
            self.transport.abort()
            return
        self._got_bytes = True
        try:
            if self._framing is None:
                rest = self._take_head(call, data)
                if rest is None or self.call is not call:
                    return
                data = rest
            self._take_body(call, data)
        except BadReply as error:
            self.transport.abort()
            if self.call is call:
                self._lose(str(error))

    def eof_received(self) -> None:
        """The server closes; that ends an answer that has no other end."""
        self._turn.catch_up()
        call = self.call
        if call is not None and self._framing is CLOSE:
            self._finish(call)

    def pause_writing(self) -> None:
        """A request is written whole, and waits in memory."""

    def resume_writing(self) -> None:
        """See pause_writing."""

    def connection_lost(self, error: Exception | None) -> None:
        self.end_direct()
        self._turn.catch_up()
        self._pool.forget(self)
        self._lose("the connection was closed" if error is None else f"connection lost: {error}")

    # Private

    def _take_head(self, call: Call, data: bytes) -> bytes | None:
        """Read the head; return what follows it, None while it is not whole."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        known = self._pool.known_head
        if known is not None and data.startswith(known.before) and not call.is_for_head:
            end = len(known.before)
            if known.framing is LENGTH:
                length, stop = leading_number(data, end)
                body = stop + len(known.after)
                if stop > end and data[stop:body] == known.after:
                    return self._begin(call, known, length, data[body:])
            else:
                return self._begin(call, known, 0, data[end:])
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end == 3:
                if len(data) > HEAD_BYTES:
                    raise BadReply("the answer's head is too long")
                if data[:5] != b"HTTP/"[: len(data)]:
                    raise BadReply("the answer is not HTTP")
                self._pending = data
                return None
            if end > HEAD_BYTES:
                raise BadReply("the answer's head is too long")
            head = read_head(data[:end], is_for_head=call.is_for_head)
            data = data[end:]
            if head.status >= 200:
                break  # the others are interim answers
        if head.status == 200 and not call.is_for_head:
            self._pool.known_head = head
        length = head.length if head.framing is LENGTH else 0
        return self._begin(call, head, length, data)

    def _begin(self, call: Call, head: ReplyHead, length: int, rest: bytes) -> bytes:
        self._framing = head.framing
        self._left = length
        self._keep = head.keep
        if head.framing is CHUNKED:
            self._chunks = ChunkReader()
        told = length if head.framing is not NONE else head.length
        call.sink.on_head(head.status, head.headers, told if head.has_length else None)
        return rest

    def _take_body(self, call: Call, data: bytes) -> None:
        framing = self._framing
        if framing is CHUNKED:
            self._take_chunks(call, data)
            return
        if framing is CLOSE:
            if data:
                call.sink.on_data(data)
            return
        left = self._left - len(data)
        if left < 0:  # a second answer to one request
            self._keep = False
            data, left = data[: self._left], 0
        self._left = left
        if data:
            call.sink.on_data(data)
        if not left and self.call is call:
            self._finish(call)

    def _take_chunks(self, call: Call, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        sink = call.sink
        if sink.takes_chunks and chunks.is_between:
            # All of a read or nothing: each part passed on by itself would be a write of its own.
            count, end = whole_chunks(data)
            if end == len(data) and count and sink.on_chunks(data, count):
                self._plain += 1
                if self._plain == PLAIN_READS:
                    self._turn.after(self)
                return
        self._plain = 0
        body = chunks.feed(data)
        if body:
            sink.on_data(body)
        if chunks.is_complete and self.call is call:
            if chunks.rest:
                self._keep = False
            self._finish(call)

    def _finish(self, call: Call) -> None:
        """The answer is whole: give the connection back, then tell the sink."""
        self.call = None
        call.connection = None
        call.is_over = True
        self._framing = None
        self._chunks = None
        self._got_bytes = False
        self._plain = 0
        self.served += 1
        if not self._keep:
            self.transport.close()
        else:
            if call.is_paused:
                self.transport.resume_reading()
            if not self.is_proving:
                self._pool.give_back(self)
        call.sink.on_end()

    def _lose(self, message: str) -> None:
        """Tell the call; or send it again when this was a used connection that said nothing."""
        call, self.call = self.call, None
        if call is None:
            return
        if self.idle_since_s > 0.0 and not self._got_bytes and not call.once:
            call.once = True
            call.connection = None
            self._pool.connect(call)
            return
        call.lose(message, got_bytes=self._got_bytes)
