"""ServerConnection: one client's connection, from its first byte to its last.

It reads requests one after the other and hands each to the handler; the next one waits in a bounded
buffer until the answer has ended. Deadlines are checked by the server's one sweep.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from hostler.core.errors import HostlerError, Overloaded, RequestTooLarge, envelope
from hostler.wire import http1
from hostler.wire.exchange import Exchange, Request, error_headers
from hostler.wire.heads import HeadReader
from hostler.wire.identity import Identity, peer_identity
from hostler.wire.phase import BODY, BUSY, HEAD, IDLE, LINGER, LINGER_S, Phase, judge_slow

if TYPE_CHECKING:
    from hostler.wire.server import HttpServer

log = logging.getLogger(__name__)

PIPELINE_BYTES = 64 * 1024  # of requests that wait for their turn; then reading stops
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ServerConnection:
    """One client's connection. Made by the server for each that is accepted.

    An asyncio.Protocol by its methods, not by descent: a compiled class has no interpreted parent.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_collected",
        "_drained",
        "_exchange",
        "_heads",
        "_held",
        "_is_reading",
        "_is_running",
        "_missing",
        "_phase",
        "_received",
        "_request",
        "_served",
        "_since_s",
        "_stalled_since_s",
        "_turn",
        "client",
        "peer",
        "server",
        "transport",
        "written",
    )

    transport: asyncio.Transport

    def __init__(self, server: "HttpServer") -> None:
        self.server = server
        self._turn = server.turn
        self.written = 0  # bytes given to the transport, ever
        self._drained = 0
        self._phase: Phase = IDLE
        self._since_s = self._stalled_since_s = server.now_s
        self.client = ""
        self.peer: Identity | None = None  # who it is, by a certificate of ours
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._request: Request | None = None
        self._body: http1.ChunkedBody | None = None
        self._collected = bytearray()
        self._missing = 0
        self._received = 0
        self._held = 0  # body bytes counted against the cap of the whole process
        self._served = 0
        self._is_reading = True
        self._is_running = False
        self._heads = HeadReader()

    def write(self, data: bytes) -> None:
        """Send bytes and count them: the sweep tells a slow reader from a stalled one."""
        self.written += len(data)
        self._turn.write(self.transport, data)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else "unix"
        if self.server.asks_for_certificates:
            self.peer = peer_identity(transport.get_extra_info("ssl_object"))
        limits = self.server.limits
        self.transport.set_write_buffer_limits(high=limits.stream_buffer_bytes)
        sock = transport.get_extra_info("socket")
        fileno = -1
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.socket_send_bytes)
            fileno = sock.fileno()
        if not self.server.add(self, fileno):
            self._refuse(Overloaded("too many connections", retry_after_s=1))

    def data_received(self, data: bytes) -> None:
        self._turn.asked(self, data)

    def take(self, data: bytes) -> None:
        """For the turn: this was read."""
        if self._phase is BUSY:
            self._buffer += data
            if len(self._buffer) > PIPELINE_BYTES and self._is_reading:
                self._is_reading = False
                self.transport.pause_reading()
            return
        if self._phase is LINGER:
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def eof_received(self) -> None:
        """The client has closed its side; a half-closed client counts as gone."""
        self._turn.catch_up()
        if self._exchange is not None:
            self._tell_gone()
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._turn.catch_up()
        self._release()
        self._phase = LINGER
        self._buffer = b""
        self._collected = bytearray()
        self._body = None
        self.server.remove(self)
        self._tell_gone()

    def pause_writing(self) -> None:
        _tell(self._exchange.on_pause if self._exchange is not None else None)

    def resume_writing(self) -> None:
        _tell(self._exchange.on_resume if self._exchange is not None else None)

    # For the exchange and the server

    def finish(self, keep: bool) -> None:
        """The answer has ended: go on with the next request, or close."""
        self._exchange = None
        self._release()
        self._served += 1
        if not keep or (self.server.is_draining and not self.server.is_handing_over):
            self._close(linger=bool(self._buffer))
            return
        self._phase = IDLE
        self._since_s = self.server.now_s
        if not self._is_reading:
            self._is_reading = True
            self.transport.resume_reading()
        if self._buffer and not self._is_running:
            self._advance()

    def close_if_idle(self, *, but_new: bool = False) -> None:
        """For draining: nothing of a request is here. but_new: not who is yet to ask its first one."""
        if self._phase is IDLE and not (but_new and self._served == 0):
            self._close(linger=False)

    @property
    def idle_since_s(self) -> float:
        """Since when it waits for a request's first byte; -1 when it does not."""
        return self._since_s if self._phase is IDLE else -1.0

    def cut(self) -> None:
        """Close at once: it is idle, and its place is needed."""
        self._phase = LINGER
        self.transport.abort()

    def check_deadlines(self, now_s: float, slack_s: float) -> None:
        """Close or refuse when the client is too slow; called by the sweep.

        slack_s: how far `since` may lie before the event it stands for.
        """
        limits = self.server.limits
        waiting = self.transport.get_write_buffer_size()
        drained = self.written - waiting
        if not waiting or drained != self._drained:
            self._drained = drained
            self._stalled_since_s = now_s
        elif now_s - self._stalled_since_s > limits.write_stall_s:
            self._tell_gone()
            self.transport.abort()
            return
        age_s = now_s - self._since_s - slack_s
        if self._phase is IDLE:
            if age_s > (limits.idle_timeout_s if self._served else limits.header_timeout_s):
                self._close(linger=False)
        elif self._phase is HEAD or self._phase is BODY:
            late = judge_slow(self._phase, age_s, self._received, limits)
            if late is not None:
                self._refuse(late)
        elif self._phase is LINGER and age_s > LINGER_S and not waiting:
            end = self.transport.abort if self.transport.can_write_eof() else self.transport.close
            end()

    # Private

    def _advance(self) -> None:
        """Read and hand over requests while there are whole ones and no answer is due."""
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._phase <= BODY and self._buffer:
                if self._phase is BODY:
                    if not self._read_body():
                        break
                elif not self._read_head():
                    break
        except HostlerError as error:
            self._refuse(error)
        finally:
            self._is_running = False

    def _read_head(self) -> bool:
        """Read one head, and the body if all of it is here. Returns False to wait for more."""
        buffer = self._buffer
        server = self.server
        limits = server.limits
        found = self._heads.read(buffer, limits)
        if found is None:
            self._wait_for_head(buffer)
            return False
        request, end = found
        request.request_id = server.request_id(request.fields.get(b"x-request-id"))
        if self._served >= server.last_request - 1:
            request.keep_alive = False
        self._request = request
        refusal = server.judge(request)
        if refusal is not None:
            self._refuse_head(refusal, request, end)
            return self._phase is IDLE
        self._heads.accept(request)
        length = request.content_length
        if length is not None and len(buffer) - end >= length:
            if length:
                self._hold(length)
                request.body = buffer[end : end + length]
                end += length
            self._buffer = buffer[end:]
            self._hand_over(request)
            return True
        self._phase = BODY
        self._since_s = server.now_s
        self._received = 0
        self._buffer = buffer[end:]
        if length is None:
            self._body = http1.ChunkedBody(limits.body_bytes)
        else:
            self._missing = length
        if request.expects_continue and not self._buffer:
            self.write(CONTINUE)
        return True

    def _wait_for_head(self, buffer: bytes) -> None:
        http1.check_partial_head(buffer)
        too_large = http1.head_too_large(buffer.find(b"\r\n"), len(buffer), self.server.limits)
        if too_large is not None:
            raise too_large
        if self._phase is IDLE:
            self._phase = HEAD
            self._since_s = self.server.now_s

    def _read_body(self) -> bool:
        """Take what is here of the body; hand the request over when it is complete."""
        request = self._request
        assert request is not None
        data, self._buffer = self._buffer, b""
        self._received += len(data)
        if self._body is not None:
            self._hold(len(data))
            rest = self._body.feed(data)
            if rest is None:
                return False
            request.body, self._body = self._body.body(), None
            self._buffer = rest
        else:
            if len(data) > self._missing:
                data, self._buffer = data[: self._missing], data[self._missing :]
            self._hold(len(data))
            self._collected += data
            self._missing -= len(data)
            if self._missing:
                return False
            request.body = bytes(self._collected)
            self._collected = bytearray()
        self._hand_over(request)
        return True

    def _hold(self, count: int) -> None:
        server = self.server
        if server.bodies_held + count > server.limits.all_bodies_bytes:
            raise Overloaded("too many request bodies are held at once", retry_after_s=1)
        server.bodies_held += count
        self._held += count

    def _release(self) -> None:
        self.server.bodies_held -= self._held
        self._held = 0

    def _hand_over(self, request: Request) -> None:
        self._phase = BUSY
        self._request = None
        self._exchange = exchange = Exchange(self, request, self.client)
        try:
            self.server.handler(exchange)
        except Exception:  # boundary: one request
            log.exception("http.handler_failed request_id=%s", request.request_id)
            exchange.send_error(HostlerError())

    def _refuse_head(self, error: HostlerError, request: Request, end: int) -> None:
        """Answer a refused head; the connection lives on when all of its body is here to skip."""
        length = request.content_length
        can_go_on = (
            request.keep_alive
            and not request.expects_continue
            and not isinstance(error, RequestTooLarge)
            and error.http_status not in (400, 421)
            and length is not None
            and len(self._buffer) - end >= length
        )
        if not can_go_on:
            self._refuse(error)
            return
        self._buffer = self._buffer[end + (length or 0) :]
        self._phase = BUSY
        self._request = None
        self._exchange = Exchange(self, request, self.client)
        self._exchange.send_error(error)

    def _refuse(self, error: HostlerError) -> None:
        """Answer with an error and close: what follows on this connection cannot be trusted."""
        request, self._request = self._request, None
        if request is None:
            request = Request("GET", b"/", 1, [])
            request.request_id = self.server.request_id(None)
        request.keep_alive = False
        head_only = request.method == "HEAD"
        body = envelope(error)
        fields = http1.field_lines(error_headers(error))
        if self.server.cors is not None:
            fields += self.server.cors.lines(request)
        self.write(
            b"%b%bx-request-id: %b\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (
                http1.STATUS_LINES[error.http_status],
                self.server.common_headers,
                request.request_id.encode(),
                fields,
                len(body),
                b"" if head_only else body,
            )
        )
        self._release()
        self._collected = bytearray()
        self._body = None
        self._close(linger=True)

    def _close(self, linger: bool) -> None:
        """Close when everything is sent.

        linger: the client may still be sending; closing at once would reset the connection and
            could destroy the answer before the client has read it.
        """
        self._phase = LINGER
        self._since_s = self.server.now_s
        self._buffer = b""
        self._turn.flush()
        if not linger:
            self.transport.close()
            return
        if not self._is_reading:
            self._is_reading = True
            self.transport.resume_reading()
        if self.transport.can_write_eof():  # TLS cannot: the end comes when lingering is over
            self.transport.write_eof()

    def _tell_gone(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            _tell(exchange.detach())


def _tell(callback: Callable[[], None] | None) -> None:
    if callback is None:
        return
    try:
        callback()
    except Exception:  # boundary: one request's callback must not harm the connection
        log.exception("http.callback_failed")
