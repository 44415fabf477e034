"""Relay: what stands before the engines of a machine, for the gateways of others.

One port for all of them, over mutual TLS; the instance is named by the path. It decides nothing: it
finds the instance's sockets, and copies bytes both ways at the pace of the slower side.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hostler.app.config import HttpLimits
from hostler.app.telemetry import logger
from hostler.core.errors import (
    HostlerError,
    InsufficientScope,
    NotFound,
    WorkerLost,
    WrongInstance,
    envelope,
)
from hostler.core.snapshot import Endpoint
from hostler.wire.client import Call, Pool, UpstreamLost, build_request
from hostler.wire.distant import keep_watch
from hostler.wire.exchange import Exchange, error_headers
from hostler.wire.http1 import Fields, field_lines
from hostler.wire.identity import Peer
from hostler.wire.server import HttpServer
from hostler.wire.tls import Certificates
from hostler.wire.turn import Turn

CONNECT_TIMEOUT_S = 1.0
IDLE_S = 4.0  # less than the shortest of our engines: llama.cpp closes after 5 s
REQUESTS_PER_CONNECTION = 90  # llama.cpp: 100
SWEEP_S = 5.0
BODY_BYTES = 64 * 1024 * 1024  # the gateway has judged it; a larger limit of its operator must pass
LOST_FIELD = b"x-hostler-lost"  # in an answer of the relay: the engine died with the request

ENGINE, AGENT, BEAT = "/i/", "/a/", "/host/beat"
AGENT_PATHS = frozenset({"/status", "/beat", "/health", "/prefix/read", "/prefix/lend"})

Sockets = Callable[[str], tuple[str, str] | None]

log = logger(__name__)


class Relay:
    """The port of one machine.

    sockets: an instance's engine socket and agent socket; None: it is not here (any more).
    beat: the answer to `POST /host/beat`, for the controller; None: there is none.
    is_fenced: set: every request is sent elsewhere (421), those under way may finish.
    """

    def __init__(
        self,
        sockets: Sockets,
        tls: Certificates,
        *,
        limits: HttpLimits | None = None,
        beat: Callable[[], bytes] | None = None,
    ) -> None:
        """tls: `server_certificates(folder, clients_must_show=True)`."""
        self.is_fenced = False
        self.in_flight = 0
        self._sockets = sockets
        self._tls = tls
        self._beat = beat
        self._ways: dict[tuple[str, str], _Way] = {}  # by instance and socket
        self._turn = Turn()
        self._server = HttpServer(
            self._handle,
            limits=_limits(limits or HttpLimits()),
            name="relay",
            turn=self._turn,
            is_bare=True,
        )

    @asynccontextmanager
    async def running(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve on a bound TCP socket, which is the relay's from now on; at the end cut what is left."""
        keep_watch(sock)
        self._turn.join(asyncio.get_running_loop())
        async with asyncio.TaskGroup() as tasks:
            sweep = tasks.create_task(self._sweep(), name="relay.sweep")
            await self._server.listen(sock, self._tls)
            try:
                yield
            finally:
                sweep.cancel()
                await self._server.close(0.0)
                for way in tuple(self._ways.values()):
                    await way.pool.close()
                self._ways.clear()

    async def drain(self, drain_s: float) -> None:
        """Accept nobody any more; let what is under way finish, for so long, then cut it."""
        await self._server.close(drain_s)

    # Private

    def _handle(self, exchange: Exchange) -> None:
        path, peer = exchange.request.path, exchange.peer
        role = peer.role if peer is not None else None
        try:
            if role is not Peer.GATEWAY and role is not Peer.CONTROLLER:
                raise InsufficientScope("a host's relay serves gateways and the controller alone")
            if path.startswith(ENGINE):
                self._pass_on(exchange, path, is_agent=False)
            elif path.startswith(AGENT):
                self._pass_on(exchange, path, is_agent=True)
            elif path == BEAT and role is Peer.CONTROLLER and self._beat is not None:
                exchange.send(200, self._beat(), _JSON)
            else:
                raise NotFound(f"a relay has no {path}")
        except HostlerError as error:
            exchange.send_error(error)

    def _pass_on(self, exchange: Exchange, path: str, *, is_agent: bool) -> None:
        end = path.find("/", len(ENGINE))
        if end < 0:
            raise NotFound("a relay's path names an instance, and goes on")
        instance_id, target = path[len(ENGINE) : end], path[end:]
        if is_agent and target not in AGENT_PATHS:
            raise NotFound(f"a relay has no {target} of agents")
        is_one = not self.is_fenced and _INSTANCE_ID.fullmatch(instance_id) is not None
        found = self._sockets(instance_id) if is_one else None
        if found is None:
            raise WrongInstance()
        request = exchange.request
        if request.query:
            target = f"{target}?{request.query}"
        fields = request.fields
        passed = [(name, fields[name]) for name in _PASSED if name in fields]
        message = build_request(request.method, target, "localhost", passed, request.body)
        key = instance_id, found[is_agent]
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = _Way(*key, self._turn)
        _Passage(self, exchange, way).begin(message)

    async def _sweep(self) -> None:
        """Let go of instances that are no more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for key, way in tuple(self._ways.items()):
                found = self._sockets(key[0])
                if (found is None or key[1] not in found) and not way.pool.busy_count:
                    del self._ways[key]
                    await way.pool.close()


# Private

_INSTANCE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JSON = ((b"content-type", b"application/json"),)
# What a gateway says that an engine or agent may want to know; all else is between two neighbours. Who is
# meant is said by the path, and the socket is its: a worker brought by hand calls itself otherwise.
_PASSED = (b"content-type", b"accept-encoding", b"x-request-id", b"traceparent", b"tracestate")
# Of an answer: what is between two neighbours, and what makes equal answers differ.
_DROPPED = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"date",
     b"server", b"x-content-type-options", b"x-request-id", b"proxy-authenticate", LOST_FIELD,
     b"x-hostler-instance"}
)  # fmt: skip


class _Way:
    """The connections to one socket, and the header lines of its last answer: the next has the same."""

    __slots__ = ("_fields", "_identity", "_lines", "pool")

    def __init__(self, instance_id: str, path: str, turn: Turn) -> None:
        self._identity = (b"x-hostler-instance", instance_id.encode())
        self.pool = Pool(
            Endpoint(socket=path),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            idle_s=IDLE_S,
            requests_per_connection=REQUESTS_PER_CONNECTION,
            turn=turn,
        )
        self._fields: Fields | None = None
        self._lines = b""

    def lines(self, fields: Fields) -> bytes:
        """What of these headers is passed on. A pool gives the same list for equal heads."""
        if fields is not self._fields:
            self._fields = fields
            kept = [field for field in fields if field[0] not in _DROPPED]
            self._lines = field_lines([*kept, self._identity])
        return self._lines


class _Passage:
    """One request and its answer. The Sink of its call."""

    __slots__ = (
        "_exchange",
        "_is_started",
        "_length",
        "_lines",
        "_relay",
        "_status",
        "_way",
        "takes_chunks",
    )

    def __init__(self, relay: Relay, exchange: Exchange, way: _Way) -> None:
        self._relay = relay
        self._exchange = exchange
        self._way = way
        self._is_started = False
        self._status = 0  # not 0: the head waits for its body, to be one write with it
        self._length = 0
        self._lines = b""
        self.takes_chunks = False

    def begin(self, message: bytes) -> None:
        self._relay.in_flight += 1
        call: Call = self._way.pool.submit(message, self)
        exchange = self._exchange
        if exchange.is_over:
            return

        def gone() -> None:
            self._relay.in_flight -= 1
            call.cancel()

        exchange.on_gone, exchange.on_pause, exchange.on_resume = gone, call.pause, call.resume

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        lines = self._way.lines(headers)
        if length:
            self._status, self._length, self._lines = status, length, lines
            return
        self._is_started = True
        self.takes_chunks = length is None
        self._exchange.start(status, (), length, lines)

    def on_chunks(self, frames: bytes, count: int) -> bool:
        return self._exchange.pass_on(frames)

    def on_data(self, data: bytes) -> None:
        status = self._status
        if status:
            self._status = 0
            self._is_started = True
            if len(data) == self._length:
                self._exchange.send(status, data, (), self._lines)
                return
            self._exchange.start(status, (), self._length, self._lines)
        self._exchange.write(data)

    def on_end(self) -> None:
        self._relay.in_flight -= 1
        if self._status:  # the answer to a HEAD
            self._exchange.start(self._status, (), self._length, self._lines)
        self._exchange.end()

    def on_lost(self, error: UpstreamLost) -> None:
        """What never reached the engine may be asked elsewhere; what did is said to be lost with it."""
        self._relay.in_flight -= 1
        exchange = self._exchange
        if self._is_started:
            exchange.abort()
        elif error.sent_bytes:
            lost = WorkerLost()
            fields = [*error_headers(lost), (LOST_FIELD, b"1")]
            exchange.send(lost.http_status, envelope(lost), fields)
        else:
            exchange.send_error(WrongInstance())


def _limits(limits: HttpLimits) -> HttpLimits:
    """Those of a server whose clients are gateways: each comes from one address with all it has."""
    return HttpLimits(
        header_bytes=limits.header_bytes,
        target_bytes=limits.target_bytes,
        body_bytes=max(BODY_BYTES, limits.body_bytes),
        all_bodies_bytes=max(4 * BODY_BYTES, limits.all_bodies_bytes),
        connections=limits.connections,
        connections_per_client=0,
        stream_buffer_bytes=limits.stream_buffer_bytes,
        socket_send_bytes=limits.socket_send_bytes,
    )
