"""DistantTls: how a pool connects to another host, so that only the host meant ever sees a request (F27).

Not here: the relay that answers there (`wire/relay.py`), and where certificates come from.
"""

import asyncio
import ipaddress
import socket
import ssl
from typing import cast

from hostler.app.telemetry import logger
from hostler.core.snapshot import Endpoint
from hostler.wire.identity import CONTROLLER, ClientContexts, Identity, Peer
from hostler.wire.sink import UpstreamLost

# A side that vanished is noticed by these while a connection waits, and while it sends (F38).
KEEP_IDLE_S, KEEP_EVERY_S, KEEP_TRIES = 3, 1, 3
UNSENT_MS = 10_000
# A lost first packet is sent again after 1 s. Whoever hangs there is cut by probes in any case.
PATIENCE = 2.5  # times that with which an engine here is connected to
RELAY_IDLE_S = 60.0  # a relay closes after 75

log = logger(__name__)


def holder(host_id: str) -> Identity:
    """Who must answer at an endpoint with this `host_id`. "controller": the controller's own machine."""
    return CONTROLLER if host_id == CONTROLLER.role else Identity(Peer.HOST, host_id)


class DistantTls:
    """The way of one pool to one host.

    The certificate's name is checked in the handshake, before a byte of a request leaves. A connection
    after the first takes up its session: only the process that gave the session can go on with it.
    """

    __slots__ = ("_contexts", "_endpoint", "_is_address", "_is_told", "_resuming", "_server_name")

    def __init__(self, endpoint: Endpoint, contexts: ClientContexts | None) -> None:
        self._endpoint = endpoint
        self._server_name = holder(endpoint.host_id).name
        self._contexts = contexts
        self._resuming: _Resuming | None = None
        self._is_address = _is_address(endpoint.host)
        self._is_told = False

    async def connect(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        """Open a connection for the protocol; it is used only when this returns.

        Raises:
            OSError: nobody is there, or another than the host meant. UpstreamLost: it cannot be tried.
        """
        endpoint = self._endpoint
        if self._contexts is None:
            raise UpstreamLost(
                "this process has no certificate to show to other hosts", refused=True
            )
        if not self._is_address:
            raise UpstreamLost("a host is reached at an address, never at a name", refused=True)
        newest = self._contexts.newest()
        if self._resuming is None or self._resuming.context is not newest:
            self._resuming = _Resuming(newest)
        await loop.create_connection(
            lambda: protocol,
            endpoint.host,
            endpoint.port,
            ssl=cast(ssl.SSLContext, self._resuming),
            server_hostname=self._server_name,
        )
        self._is_told = False

    def remember(self, transport: asyncio.Transport) -> None:
        """The first answer of a connection is here, and with it the session for those that come."""
        shown = transport.get_extra_info("ssl_object")
        resuming = self._resuming
        if (
            resuming is not None
            and isinstance(shown, ssl.SSLObject)
            and shown.context is resuming.context
        ):
            resuming.session = shown.session

    def note_failure(self, error: Exception) -> None:
        """Tell once that another than the host meant answers there; forget the session."""
        if self._resuming is not None:
            self._resuming.session = None
        if not isinstance(error, ssl.SSLError) or self._is_told:
            return
        self._is_told = True
        log.error(
            "host.not_the_one_meant",
            host_id=self._endpoint.host_id,
            address=f"{self._endpoint.host}:{self._endpoint.port}",
            why=getattr(error, "verify_message", "") or error.reason,
        )


def keep_watch(sock: socket.socket, receive_bytes: int = 0) -> None:
    """Have the kernel notice when the other machine is gone. On a listening socket: for all it accepts."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEP_IDLE_S),
        (socket.TCP_KEEPINTVL, KEEP_EVERY_S),
        (socket.TCP_KEEPCNT, KEEP_TRIES),
        (socket.TCP_USER_TIMEOUT, UNSENT_MS),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)


# Private


class _Resuming:
    """A context for the event loop, which knows nothing of sessions: this has one for it."""

    __slots__ = ("context", "session")

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.session: ssl.SSLSession | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> ssl.SSLObject:
        return self.context.wrap_bio(incoming, outgoing, server_side, server_hostname, self.session)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
