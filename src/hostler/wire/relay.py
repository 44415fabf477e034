"""Relay: what stands before the engines of a machine, for the gateways of others.

One port for all of them, over mutual TLS; the instance is named by the path. It decides nothing: it
finds the instance's sockets, and copies bytes both ways at the pace of the slower side.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from hostler.app.config import HttpLimits
from hostler.app.telemetry import logger
from hostler.core.errors import (
    HostlerError,
    InsufficientScope,
    NotFound,
    Overloaded,
    StorageFailed,
    WorkerLost,
    WrongInstance,
    envelope,
)
from hostler.core.snapshot import Endpoint
from hostler.core.trust import IdentityRefused
from hostler.wire.client import Call, Pool, UpstreamLost, build_request
from hostler.wire.direct import Way
from hostler.wire.distant import keep_watch
from hostler.wire.exchange import Exchange, error_headers
from hostler.wire.http1 import Fields, field_lines
from hostler.wire.identity import Identity, Peer
from hostler.wire.server import HttpServer
from hostler.wire.tls import Certificates
from hostler.wire.turn import Turn

CONNECT_TIMEOUT_S = 1.0
IDLE_S = 4.0  # less than the shortest of our engines: llama.cpp closes after 5 s
REQUESTS_PER_CONNECTION = 90  # llama.cpp: 100
SWEEP_S = 5.0
BODY_BYTES = 64 * 1024 * 1024  # the gateway has judged it; a larger limit of its operator must pass
LOST_FIELD = b"x-hostler-lost"  # in an answer of the relay: the engine died with the request

ENGINE, AGENT, BEAT, LOGS = "/i/", "/a/", "/host/beat", "/host/logs/"
AGENT_PATHS = frozenset({"/status", "/beat", "/health", "/prefix/read", "/prefix/lend"})

LOGS_AT_ONCE = 2  # they are read in threads, which others need as well

Sockets = Callable[[str], tuple[str, str] | None]
Logs = Callable[[str, str], bytes]

log = logger(__name__)


class Relay:
    """The port of one machine.

    sockets: an instance's engine socket and agent socket; None: it is not here (any more).
    beat: the answer to `POST /host/beat`, for the controller; None: there is none.
    logs: the answer to `GET /host/logs/INSTANCE?QUERY`, for the controller, by these two; called in a thread.
    is_fenced: set: every request is sent elsewhere (421), those under way may finish.
    """

    def __init__(
        self,
        sockets: Sockets,
        tls: Certificates,
        *,
        limits: HttpLimits | None = None,
        beat: Callable[[], bytes] | None = None,
        logs: Logs | None = None,
    ) -> None:
        """tls: `server_certificates(folder, clients_must_show=True)`."""
        self.is_fenced = False
        self.in_flight = 0
        self._sockets = sockets
        self._tls = tls
        self._beat = beat
        self._logs = logs
        self._refused: frozenset[str] = frozenset()
        self._reading: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
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
            self._tasks = tasks
            await self._server.listen(sock, self._tls)
            try:
                yield
            finally:
                self._tasks = None
                sweep.cancel()
                await self._server.close(0.0)
                for way in tuple(self._ways.values()):
                    await way.pool.close()
                self._ways.clear()

    def refuse(self, gateways: Collection[str]) -> None:
        """Serve these gateways no more, and all others: what they have open is cut.

        gateways: ids of those that were removed, whatever their certificates say.
        """
        before, self._refused = self._refused, frozenset(gateways)
        if more := sorted(self._refused - before):
            log.info("relay.refuses", gateways=more[:8], count=len(more))
            for connection in self._server.crowd:
                if self._is_refused(connection.peer):
                    connection.transport.abort()

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
            if self._refused and self._is_refused(peer):
                _turn_away(exchange)
            elif path.startswith(ENGINE):
                self._pass_on(exchange, path, is_agent=False)
            elif path.startswith(AGENT):
                self._pass_on(exchange, path, is_agent=True)
            elif path == BEAT and role is Peer.CONTROLLER and self._beat is not None:
                exchange.send(200, self._beat(), _JSON)
            elif path.startswith(LOGS) and self._logs is not None:
                self._tell_log(exchange, self._logs, path[len(LOGS) :])
            else:
                raise NotFound(f"a relay has no {path}")
        except HostlerError as error:
            exchange.send_error(error)

    def _is_refused(self, peer: Identity | None) -> bool:
        return peer is not None and peer.role is Peer.GATEWAY and peer.id in self._refused

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

    def _tell_log(self, exchange: Exchange, logs: Logs, instance_id: str) -> None:
        peer = exchange.peer
        if peer is None or peer.role is not Peer.CONTROLLER:
            raise InsufficientScope("the logs of a host are for its controller alone")
        if exchange.request.method != "GET" or _INSTANCE_ID.fullmatch(instance_id) is None:
            raise NotFound("a relay's path of a log names an instance, for GET")
        if self._tasks is None or len(self._reading) >= LOGS_AT_ONCE:
            raise Overloaded("this host reads other logs now")
        reading = self._tasks.create_task(_send_log(exchange, logs, instance_id), name="relay.log")
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)

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


def _turn_away(exchange: Exchange) -> None:
    """Say that it was removed, and close: nothing more is read from there."""
    error = IdentityRefused("this gateway was removed; it is not served any more")
    body = envelope(error)
    exchange.start(error.http_status, error_headers(error), len(body))
    exchange.write(body)
    exchange.abort()


async def _send_log(exchange: Exchange, logs: Logs, instance_id: str) -> None:
    """It goes on when the controller has left: a thread cannot be called off, and counts until its end."""
    try:
        told = await asyncio.to_thread(logs, instance_id, exchange.request.query)
        exchange.send(200, told, _JSON)
    except HostlerError as error:
        exchange.send_error(error)
    except OSError as error:
        exchange.send_error(StorageFailed(f"the log cannot be read ({error.strerror})"))
    except Exception as error:  # boundary: one request
        log.error("relay.log_failed", instance_id=instance_id, error=error)
        exchange.abort()


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

    def way(self) -> Way | None:
        return None  # who asks is on another machine, and TLS on the way there

    def on_passed(self, count: int) -> None:
        """Nothing goes any other way."""

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
