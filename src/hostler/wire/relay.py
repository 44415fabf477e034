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
from hostler.wire.http1 import Fields
from hostler.wire.identity import Peer
from hostler.wire.server import HttpServer
from hostler.wire.tls import Certificates

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
        self._pools: dict[str, tuple[str, Pool]] = {}  # by socket: whose it is, and the pool
        self._server = HttpServer(
            self._handle,
            limits=_limits(limits or HttpLimits()),
            name="relay",
        )

    @asynccontextmanager
    async def running(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve on a bound TCP socket, which is the relay's from now on; at the end cut what is left."""
        keep_watch(sock)
        async with asyncio.TaskGroup() as tasks:
            sweep = tasks.create_task(self._sweep(), name="relay.sweep")
            await self._server.listen(sock, self._tls)
            try:
                yield
            finally:
                sweep.cancel()
                await self._server.close(0.0)
                for _, pool in tuple(self._pools.values()):
                    await pool.close()
                self._pools.clear()

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
        fields = [field for field in request.headers if field[0] not in _OUR_FIELDS]
        message = build_request(request.method, target, "localhost", fields, request.body)
        _Passage(self, exchange).begin(self._pool(instance_id, found[is_agent]), message)

    def _pool(self, instance_id: str, path: str) -> Pool:
        found = self._pools.get(path)
        if found is not None:
            return found[1]
        pool = Pool(
            Endpoint(socket=path),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            idle_s=IDLE_S,
            requests_per_connection=REQUESTS_PER_CONNECTION,
        )
        self._pools[path] = (instance_id, pool)
        return pool

    async def _sweep(self) -> None:
        """Let go of instances that are no more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for path, (instance_id, pool) in tuple(self._pools.items()):
                found = self._sockets(instance_id)
                if (found is None or path not in found) and not pool.busy_count:
                    del self._pools[path]
                    await pool.close()


# Private

_INSTANCE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JSON = ((b"content-type", b"application/json"),)
# Of a message between two neighbours, so never passed on; and what each side says itself.
_OUR_FIELDS = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"expect",
     b"host", b"content-length", b"date", b"server", b"x-content-type-options",
     b"proxy-authenticate", b"proxy-authorization"}
)  # fmt: skip
_OUR_ANSWER_FIELDS = _OUR_FIELDS | {b"x-request-id", LOST_FIELD}


class _Passage:
    """One request and its answer. The Sink of its call."""

    __slots__ = ("_exchange", "_is_started", "_relay", "takes_chunks")

    def __init__(self, relay: Relay, exchange: Exchange) -> None:
        self._relay = relay
        self._exchange = exchange
        self._is_started = False
        self.takes_chunks = False

    def begin(self, pool: Pool, message: bytes) -> None:
        self._relay.in_flight += 1
        call: Call = pool.submit(message, self)
        exchange = self._exchange
        if exchange.is_over:
            return

        def gone() -> None:
            self._relay.in_flight -= 1
            call.cancel()

        exchange.on_gone, exchange.on_pause, exchange.on_resume = gone, call.pause, call.resume

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        kept = [field for field in headers if field[0] not in _OUR_ANSWER_FIELDS]
        self._is_started = True
        self.takes_chunks = length is None
        self._exchange.start(status, kept, length)

    def on_chunks(self, frames: bytes, count: int) -> bool:
        return self._exchange.pass_on(frames)

    def on_data(self, data: bytes) -> None:
        self._exchange.write(data)

    def on_end(self) -> None:
        self._relay.in_flight -= 1
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
