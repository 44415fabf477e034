"""Door: a listening socket that can be shut for a while (F67).

No loop can pause a listener. So a door listens on a copy of its socket: while it is shut that copy is
closed and connections wait in the kernel's queue; opened again, a new copy takes them.
"""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Callable
from typing import cast

BACKLOG = 4096
SHUT_AT, OPEN_AT = 0.9, 0.85  # of the files this process may open
CLOSE_S = 2.0  # how long the end of a TLS connection may take


class Door:
    """One listening socket, TCP or Unix; it belongs to the door.

    make: a new asyncio.Protocol, by its methods, for each connection.
    tls: None for plain HTTP. handshake_s: how long a handshake may take.
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], object],
        tls: ssl.SSLContext | None = None,
        handshake_s: float = 10.0,
    ) -> None:
        self._sock = sock
        self._make = cast(Callable[[], asyncio.Protocol], make)
        self._tls = tls
        self._handshake_s = handshake_s
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        if self.is_tcp:
            # All that is accepted has it then. asyncio's own loop sets it only where the listening socket was
            # made with the protocol's number; without it an answer waits 40 ms for who has got a TLS ticket.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def is_tcp(self) -> bool:
        return self._sock.family != socket.AF_UNIX

    @property
    def is_open(self) -> bool:
        return self._server is not None

    def lowest_free_file(self) -> int:
        """The number the next file of this process gets."""
        try:
            number = os.dup(self._sock.fileno())
        except OSError:
            return most_files()
        os.close(number)
        return number

    async def open(self) -> None:
        """Accept from now on."""
        if self._server is not None or self._sock.fileno() < 0:
            return
        loop, copy = self._loop, self._sock.dup()
        try:
            if not self.is_tcp:
                self._server = await loop.create_unix_server(self._make, sock=copy, backlog=BACKLOG)
                return
            is_tls = self._tls is not None
            self._server = await loop.create_server(
                self._make,
                sock=copy,
                backlog=BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_s if is_tls else None,
                ssl_shutdown_timeout=CLOSE_S if is_tls else None,
            )
        finally:
            if self._server is None:
                copy.close()

    def begin(self) -> asyncio.Task[None]:
        """Open it again. The task is the caller's, to end it with the server."""
        return self._loop.create_task(self.open(), name="wire.open")

    def shut(self) -> None:
        """Accept nobody for a while; connections wait in the kernel's queue."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def close(self) -> None:
        """Accept nobody ever again; those in the queue are refused, if nobody else holds the socket."""
        self.shut()
        self._sock.close()


def most_files() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def is_scarce(file: int) -> bool:
    """Is its number in the upper half of what may be open? Those are for connections with a request (F67)."""
    return file > most_files() // 2


def raise_most_files(wanted: int) -> None:
    """Let this process open up to `wanted` files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY,) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def open_files() -> int:
    """How many files this process has open now."""
    return len(os.listdir("/proc/self/fd"))
