"""Pool: connections to one endpoint, without an await on the hot path.

Which instance to ask, and whether to ask another, is for the gateway.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

import msgspec

from hostler.core.snapshot import Endpoint
from hostler.wire.distant import DistantTls, keep_watch
from hostler.wire.door import is_scarce
from hostler.wire.identity import ClientContexts
from hostler.wire.reply import ReplyHead
from hostler.wire.sink import Collector, Sink, UpstreamLost
from hostler.wire.turn import Turn
from hostler.wire.upstream import Call, Connection

log = logging.getLogger(__name__)

IDLE_CONNECTIONS = 256  # kept by one pool
PROOF_BYTES = 1024 * 1024  # of a proof's answer
# What the kernel takes of an answer that nobody reads on; by itself it lets that grow to megabytes (B20).
RECEIVE_BYTES = 32 * 1024


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """How a new connection shows that the server behind it is the one meant (F27).

    request: sent first on each new connection; must be answered within the connect timeout.
    check: takes status and body of the answer.
    """

    request: bytes
    check: Callable[[int, bytes], bool]


class Pool:
    """Connections to one endpoint, used again while they are good. Used by one event loop.

    connect_timeout_s: for connecting and the proof together.
    idle_s: an idle connection is not used after that; the server may end it before.
    requests_per_connection: after so many a connection is closed; 0 for no limit.
    tls: who we are, for an endpoint on another host; without it none there can be reached.
    ca: PEM file of who vouches for a server given by URL; "": this system's authorities.
    turn: what its reads and writes are part of; None: one of its own.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connect_timeout_s: float,
        idle_s: float,
        requests_per_connection: int = 0,
        prove: Proof | None = None,
        tls: ClientContexts | None = None,
        ca: str = "",
        turn: Turn | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.requests_per_connection = requests_per_connection
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._prove = prove
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.turn = turn or Turn(self._loop)
        self._sweep_handle: asyncio.TimerHandle | None = None
        self.known_head: ReplyHead | None = None  # of the last good answer
        self._distant = DistantTls(endpoint, tls) if endpoint.host_id else None
        self._tls: ssl.SSLContext | None = None
        if endpoint.tls and not endpoint.host_id:
            self._tls = ssl.create_default_context(cafile=ca or None)
        self._is_closed = False

    @property
    def busy_count(self) -> int:
        """Connections with a call under way, and those that are being made."""
        return len(self._connections) - len(self._idle) + len(self._connecting)

    @property
    def connection_count(self) -> int:
        """Open connections, idle and busy."""
        return len(self._connections)

    def submit(self, request: bytes, sink: Sink, *, once: bool = False) -> Call:
        """Send a whole request; the answer goes to the sink.

        request: as `build_request` makes it. once: it is an order, never sent a second time. Other
            requests are, when the server closed a used connection before it said a word.
        """
        call = Call(request, sink, once=once)
        idle = self._idle
        if idle:
            oldest_s = self._loop.time() - self._idle_s
            while idle:
                connection = idle.pop()
                if connection.idle_since_s > oldest_s and not connection.transport.is_closing():
                    connection.send(call)
                    return call
                connection.transport.abort()
        self.connect(call)
        return call

    def drop_idle(self) -> None:
        """Cut the idle connections: the way there was dead, and they may be as well."""
        for connection in self._idle:
            connection.transport.abort()

    async def close(self) -> None:
        """Cut every connection; calls under way are told they are lost."""
        self._is_closed = True
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        connecting = list(self._connecting)
        for task in connecting:
            task.cancel()
        if connecting:
            await asyncio.wait(connecting, timeout=self._connect_timeout_s)
        for connection in list(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    # For connections

    def connect(self, call: Call) -> None:
        """Open a connection for a call. The pool owns the task; `close` ends it, and none begins after it."""

        def refuse() -> None:
            call.lose("the pool was closed", refused=True)

        def ended(_: asyncio.Task[None]) -> None:
            self._connecting.discard(task)
            if task.cancelled():  # told here: one cancelled before its first step runs nothing
                refuse()
            elif (error := task.exception()) is not None:  # a fault of ours: nobody waits for ever
                log.error("wire.connect_failed", exc_info=error)
                call.lose(f"{type(error).__name__}: {error}", refused=True)

        if self._is_closed:
            self._loop.call_soon(refuse)  # later: whoever submits it does not know it yet
            return
        task = self._loop.create_task(self._connect(call), name="wire.connect")
        self._connecting.add(task)
        task.add_done_callback(ended)

    def give_back(self, connection: Connection) -> None:
        """Take back a connection whose answer is complete."""
        cap = self.requests_per_connection
        if (
            self._is_closed
            or (cap and connection.served >= cap)
            or connection.is_brief
            or len(self._idle) >= IDLE_CONNECTIONS
        ):
            connection.transport.close()
            return
        connection.idle_since_s = self._loop.time()
        if self._distant is not None and connection.served == 1:
            self._distant.remember(connection.transport)
        self._idle.append(connection)
        if self._sweep_handle is None:
            self._sweep_handle = self._loop.call_later(self._idle_s, self._sweep)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    # Private

    async def _connect(self, call: Call) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._open()
                if self._prove is not None:
                    await self._check_proof(connection, self._prove)
        except (OSError, TimeoutError) as error:
            if self._distant is not None:
                self._distant.note_failure(error)
            is_late = isinstance(error, TimeoutError)
            call.lose(f"{type(error).__name__}: {error}", refused=True, timed_out=is_late)
            return
        except UpstreamLost as error:
            call.lose(str(error), refused=True)
            return
        if call.is_over:  # cancelled meanwhile; the connection is as good as new
            self.give_back(connection)
        elif connection.transport.is_closing():
            call.lose("the connection was closed at once", refused=True)
        else:
            connection.send(call)

    async def _open(self) -> Connection:
        endpoint = self.endpoint
        connection = Connection(self)
        protocol = cast(asyncio.Protocol, connection)
        if endpoint.socket:
            await self._loop.create_unix_connection(lambda: protocol, endpoint.socket)
        elif self._distant is not None:
            await self._distant.connect(self._loop, protocol)
            keep_watch(_socket(connection), RECEIVE_BYTES)
        else:
            await self._loop.create_connection(
                lambda: protocol,
                endpoint.host,
                endpoint.port,
                ssl=self._tls,
                server_hostname=endpoint.host if self._tls else None,
            )
            _socket(connection).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        connection.is_brief = is_scarce(_socket(connection).fileno())
        self._connections.add(connection)
        return connection

    async def _check_proof(self, connection: Connection, proof: Proof) -> None:
        sink = Collector(self._loop, PROOF_BYTES)
        call = Call(proof.request, sink)
        sink.call = call
        connection.is_proving = True
        connection.send(call)
        try:
            response = await sink.answer
            is_meant = proof.check(response.status, response.body)
        except BaseException:  # boundary: the connection must not leak; the error goes on
            connection.transport.abort()
            raise
        connection.is_proving = False
        if connection.transport.is_closing() or not is_meant:
            connection.transport.abort()
            raise UpstreamLost("another server than the one meant answers there", refused=True)

    def _sweep(self) -> None:
        """Close what has been idle too long; come again while something is idle."""
        self._sweep_handle = None
        oldest_s = self._loop.time() - self._idle_s
        for connection in [c for c in self._idle if c.idle_since_s <= oldest_s]:
            self._idle.remove(connection)
            connection.transport.abort()
        if self._idle and not self._is_closed:
            self._sweep_handle = self._loop.call_later(self._idle_s, self._sweep)


# Private


def _socket(connection: Connection) -> socket.socket:
    found: socket.socket | None = connection.transport.get_extra_info("socket")
    if found is None:
        raise ConnectionError("the connection was closed at once")
    return found
