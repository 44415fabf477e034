"""ControlServer: the control port, where machines that joined report to their controller, over TLS.

Who asks is proven by the certificate of the connection, and must be among the members; then whoever
was plugged in for that kind of machine answers. Anybody may ask for two things: to join, and who
vouches for this controller.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from hostler.app.config import HttpLimits
from hostler.app.telemetry import logger
from hostler.app.tokens import StoredHost
from hostler.core.errors import HostlerError, NotFound
from hostler.core.hosts import JoinAnswer
from hostler.core.trust import IdentityRefused, IdentityRequired
from hostler.registry.joins import Joins
from hostler.registry.members import Members, peer_of
from hostler.registry.server import JSON
from hostler.wire.identity import Identity, Peer
from hostler.wire.server import Exchange, HttpServer
from hostler.wire.tls import Certificates

log = logger(__name__)

FAREWELL_S = 2.0  # a machine that was removed may hear so long why; then its connections are cut
REFUSED_MOST = 1000
PEM = ((b"content-type", b"application/x-pem-file"),)
PEM_ALONE = (*PEM, (b"x-hostler-signs", b"no"))  # machines bring their own certificates

# Answers one request of a machine that belongs here; False: this is none of its addresses.
Serve = Callable[[Exchange, Identity], bool]


class ControlServer:
    """Serves the control port.

    `exchange.client` is the address a machine connects from, which TLS has proven to be its own.
    """

    def __init__(
        self,
        members: Members,
        joins: Joins,
        *,
        limits: HttpLimits | None = None,
        farewell_s: float = FAREWELL_S,
    ) -> None:
        self._members = members
        self._joins = joins
        self._farewell_s = farewell_s
        self._server = HttpServer(self._handle, limits=limits or HttpLimits(), name="control")
        self._plugged: dict[Peer, list[Serve]] = {Peer.HOST: [], Peer.GATEWAY: []}
        self._tasks: asyncio.TaskGroup | None = None
        self._refused: set[Identity] = set()
        members.removed.append(self._removed)

    def plug(self, role: Peer, serve: Serve) -> None:
        """Let `serve` answer what machines of this kind ask. It must not block."""
        self._plugged[role].append(serve)

    @asynccontextmanager
    async def running(self, sock: socket.socket, certificates: Certificates) -> AsyncIterator[None]:
        """Serve on a bound socket, which is the server's from now on, while the block lasts.

        certificates: of `wire.identity.server_certificates`, asking clients for theirs.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._server.listen(sock, certificates)
            log.info("control.serves", port=sock.getsockname()[1])
            try:
                yield
            finally:
                self._tasks = None
                await self._server.close(0.0)

    # Private

    def _handle(self, exchange: Exchange) -> None:
        request, peer = exchange.request, exchange.peer
        asked = (request.method, request.path)
        if asked == ("GET", "/authority"):
            exchange.send(
                200, self._joins.authority.encode(), PEM if self._joins.signs else PEM_ALONE
            )
        elif asked == ("POST", "/join"):
            self._answer(exchange, self._joins.join(request.body, exchange.client, peer))
        elif peer is None:
            exchange.send_error(IdentityRequired())
        elif self._members.find(peer) is None:
            self._note_refused(peer, exchange.client)
            exchange.send_error(IdentityRefused())
        elif asked == ("POST", "/host/renew"):
            self._answer(exchange, self._joins.renew(request.body, peer))
        elif not any(serve(exchange, peer) for serve in self._plugged.get(peer.role, ())):
            text = f"the control port has no {request.method} {request.path} for a {peer.role}"
            exchange.send_error(NotFound(text))

    def _answer(self, exchange: Exchange, work: Awaitable[JoinAnswer]) -> None:
        if self._tasks is not None:
            self._tasks.create_task(_send(exchange, work), name="control.join")

    def _note_refused(self, peer: Identity, client: str) -> None:
        """Told once of each: a machine that was removed may ask for ever."""
        if peer not in self._refused:
            if len(self._refused) >= REFUSED_MOST:
                self._refused.clear()
            self._refused.add(peer)
            log.warning("control.refused", who=str(peer), client=client)

    def _removed(self, host: StoredHost) -> None:
        identity = Identity(peer_of(host.role), host.host_id)
        asyncio.get_running_loop().call_later(self._farewell_s, self._cut, identity)

    def _cut(self, identity: Identity) -> None:
        for connection in self._server.crowd:
            if connection.peer == identity:
                connection.transport.abort()


# Private


async def _send(exchange: Exchange, work: Awaitable[JoinAnswer]) -> None:
    try:
        exchange.send(200, msgspec.json.encode(await work), JSON)
    except HostlerError as error:
        exchange.send_error(error)
