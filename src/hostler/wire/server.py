"""HttpServer: HTTP/1.1 for both planes, guarded before any handler runs.

Not here: routes, keys, and what an answer says. The reasons for each limit: docs/design/wire.md.
"""

import asyncio
import re
import secrets
import socket
import stat
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

from hostler.app.config import HttpLimits
from hostler.core.errors import HostlerError, MisdirectedRequest
from hostler.wire.connection import ServerConnection
from hostler.wire.exchange import Exchange, Request
from hostler.wire.hosts import HostPolicy
from hostler.wire.http1 import Head, check_declared_body

__all__ = ["Exchange", "Head", "HostPolicy", "HttpServer", "Request"]

BACKLOG = 4096
SWEEP_S = 0.5  # how exact deadlines are kept, at most
CUT_S = 1.0  # how long a cut connection may take to be gone


class HttpServer:
    """Accepts connections and hands each whole, checked request to `handler` as an Exchange.

    handler: must not block; asynchronous work belongs in a TaskGroup of its owner.
    allowed_hosts: None accepts every well-formed Host: for Unix sockets, out of browsers' reach.
    on_head: judges a request before its body is read; an error it returns is the answer (F91).
    """

    def __init__(
        self,
        handler: Callable[[Exchange], None],
        *,
        limits: HttpLimits,
        allowed_hosts: HostPolicy | None = None,
        on_head: Callable[[Head], HostlerError | None] | None = None,
        name: str = "hostler",
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.name = name
        self.is_draining = False
        self.bodies_held = 0  # bytes of request bodies in memory
        self.now_s = 0.0  # the loop's time at the last sweep
        self.common_headers = b""
        self._allowed_hosts = allowed_hosts
        self._on_head = on_head
        self._connections: set[ServerConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._unix_paths: list[tuple[Path, int]] = []  # with the inode of ours
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None
        self._id_prefix = secrets.token_hex(6)
        self._id_count = 0
        shortest_s = min(
            limits.header_timeout_s,
            limits.body_timeout_s,
            limits.body_grace_s,
            limits.idle_timeout_s,
            limits.write_stall_s,
        )
        self._sweep_s = min(SWEEP_S, shortest_s / 4)

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    async def listen(self, sock: socket.socket) -> None:
        """Accept on a bound socket, TCP or Unix. The socket is the server's from now on."""
        loop = asyncio.get_running_loop()
        if self._sweep_handle is None:
            self._sweep()
        sock.setblocking(False)

        def connection() -> ServerConnection:
            return ServerConnection(self)

        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(connection, sock=sock, backlog=BACKLOG)
        else:
            server = await loop.create_server(connection, sock=sock, backlog=BACKLOG)
        self._servers.append(server)

    async def listen_unix(self, path: Path) -> None:
        """Accept on a Unix socket at `path`, readable by this user alone; removes a stale one.

        Raises:
            OSError: something else than a socket is there, or the path is too long.
        """
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            path.chmod(0o600)
            await self.listen(sock)
        except BaseException:  # boundary: the socket must not leak; the error goes on
            sock.close()
            raise
        self._unix_paths.append((path, path.stat().st_ino))

    async def close(self, drain_s: float) -> None:
        """Stop accepting, close idle connections, let busy ones finish for `drain_s`, then cut."""
        self.is_draining = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        for path, inode in self._unix_paths:
            if path.exists() and path.stat().st_ino == inode:  # not that of who came after us
                path.unlink(missing_ok=True)
        self._unix_paths.clear()
        for connection in list(self._connections):
            connection.close_if_idle()
        await self._wait_until_empty(drain_s)
        for connection in list(self._connections):
            connection.transport.abort()
        await self._wait_until_empty(CUT_S)
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None

    # For connections

    def add(self, connection: ServerConnection) -> bool:
        """Count a new connection. False: there are too many, or the server is closing."""
        is_welcome = len(self._connections) < self.limits.connections and not self.is_draining
        self._connections.add(connection)
        return is_welcome

    def remove(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        if not self._connections and self._emptied is not None:
            self._emptied.set()

    def request_id(self, given: bytes | None) -> str:
        """The client's own id when it is a safe one, else a new one."""
        if given is not None and _REQUEST_ID.fullmatch(given) is not None:
            return given.decode()
        self._id_count += 1
        return f"{self._id_prefix}{self._id_count:x}"

    def judge(self, head: Request) -> HostlerError | None:
        """Say why a request is refused before its body is read, if it is."""
        hosts = self._allowed_hosts
        if hosts is not None and not hosts.allows(head.fields[b"host"]):
            return MisdirectedRequest()
        if head.content_length != 0:
            refusal = check_declared_body(head, self.limits.body_bytes)
            if refusal is not None:
                return refusal
        return self._on_head(head) if self._on_head is not None else None

    # Private

    def _sweep(self) -> None:
        """Keep the coarse clock and the Date header; check every connection's deadlines."""
        loop = asyncio.get_running_loop()
        self.now_s = now_s = loop.time()
        self.common_headers = _COMMON % formatdate(usegmt=True).encode()
        for connection in list(self._connections):
            connection.check_deadlines(now_s, self._sweep_s)
        self._sweep_handle = loop.call_later(self._sweep_s, self._sweep)

    async def _wait_until_empty(self, timeout_s: float) -> None:
        if not self._connections:
            return
        self._emptied = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            pass
        finally:
            self._emptied = None


_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_COMMON = b"date: %b\r\nx-content-type-options: nosniff\r\n"
