"""HttpServer: HTTP/1.1 for both planes, guarded before any handler runs.

Not here: routes, keys, and what an answer says. The reasons for each limit: docs/design/wire.md.
"""

import asyncio
import re
import secrets
import socket
import stat
import sys
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

from hostler.app.config import HttpLimits
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError, MisdirectedRequest
from hostler.wire.connection import ServerConnection
from hostler.wire.cors import Cors
from hostler.wire.crowd import Crowd
from hostler.wire.door import OPEN_AT, SHUT_AT, Door, most_files, open_files
from hostler.wire.exchange import Exchange, Request
from hostler.wire.hosts import HostPolicy
from hostler.wire.http1 import Head, check_declared_body
from hostler.wire.tls import Certificates
from hostler.wire.turn import Turn

log = logger(__name__)

__all__ = ["Exchange", "Head", "HostPolicy", "HttpServer", "Request"]

SWEEP_S = 0.5  # how exact deadlines are kept, at most
FILES_A_REQUEST = 2  # the client's connection, and one to an engine
CUT_S = 1.0  # how long a cut connection may take to be gone
FIRST_S = 0.25  # for the first request of a connection, when the server closes


class HttpServer:
    """Accepts connections and hands each whole, checked request to `handler` as an Exchange.

    handler: must not block; asynchronous work belongs in a TaskGroup of its owner.
    allowed_hosts: None accepts every well-formed Host: for Unix sockets, out of browsers' reach.
    on_head: judges a request before its body is read; an error it returns is the answer (F91).
    cors: which web pages may use it; None: none.
    turn: what its reads and writes are part of; None: one of its own.
    is_bare: answers carry no date and no id, so that equal ones have equal heads: for programs of ours.
    """

    def __init__(
        self,
        handler: Callable[[Exchange], None],
        *,
        limits: HttpLimits,
        allowed_hosts: HostPolicy | None = None,
        on_head: Callable[[Head], HostlerError | None] | None = None,
        cors: Cors | None = None,
        name: str = "hostler",
        turn: Turn | None = None,
        is_bare: bool = False,
    ) -> None:
        self.is_bare = is_bare
        self.handler = handler if cors is None else cors.around(handler)
        self.cors = cors
        self.limits = limits
        self.name = name
        self.is_draining = False
        self.is_handing_over = (
            False  # set before close: another process has the socket, and takes who comes
        )
        self.bodies_held = 0  # bytes of request bodies in memory
        self.now_s = 0.0  # the loop's time at the last sweep
        self.common_headers = b""
        self._allowed_hosts = allowed_hosts
        self._on_head = on_head if cors is None else cors.before(on_head)
        files = most_files()
        share = int(files * SHUT_AT) // FILES_A_REQUEST
        self.turn = turn or Turn()  # of the loop, once it listens
        self.crowd = Crowd(min(limits.connections, share), limits.connections_per_client)
        self.files_end = int(files * SHUT_AT)  # a descriptor of this number: no more are accepted
        self.last_request = limits.requests_per_connection or sys.maxsize
        self.shut_count = 0  # how often accepting was stopped
        self._certificates: Certificates | None = None
        self.asks_for_certificates = False
        self._doors: list[Door] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._unix_paths: list[tuple[Path, int]] = []  # with the inode of ours
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None
        self._id_prefix = f"{secrets.token_hex(6)}-"  # of this process, then a number
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
        return len(self.crowd)

    @property
    def is_shut(self) -> bool:
        """Are connections left waiting, for want of files?"""
        return any(not door.is_open for door in self._doors)

    async def listen(self, sock: socket.socket, tls: Certificates | None = None) -> None:
        """Accept on a bound socket, TCP or Unix. The socket is the server's from now on.

        tls: what to show; looked at by the sweep. Plain HTTP on that socket is closed unanswered.
        """
        if self._sweep_handle is None:
            self._sweep()
            self.turn.join(asyncio.get_running_loop())

        def connection() -> ServerConnection:
            return ServerConnection(self)

        def shaking_hands() -> ServerConnection:
            """It counts from the end of the handshake on; its file counts at once."""
            self._note_file(door.lowest_free_file(), None)
            return ServerConnection(self)

        make = connection if tls is None else shaking_hands
        self._certificates = tls or self._certificates
        self.asks_for_certificates |= tls is not None and tls.asks_clients
        context = tls.context if tls is not None else None
        door = Door(sock, make, context, self.limits.header_timeout_s)
        await door.open()
        self._doors.append(door)

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
        """Stop accepting, close idle connections, let busy ones finish for `drain_s`, then cut.

        While it hands over, idle ones stay: a request may be on its way. It is answered, and told
        that it is the last on this connection. `close_idle` ends that. Otherwise those alone stay, for
        FIRST_S, that have not asked anything yet: whoever connects has something to ask.
        """
        self.is_draining = True
        for task in tuple(self._opening):
            task.cancel()
        for door in self._doors:
            door.close()
        self._doors.clear()
        for path, inode in self._unix_paths:
            if path.exists() and path.stat().st_ino == inode:  # not that of who came after us
                path.unlink(missing_ok=True)
        self._unix_paths.clear()
        first_s = 0.0
        if not self.is_handing_over:
            first_s = min(drain_s, FIRST_S)
            self.close_idle(but_new=True)
            await self._wait_until_empty(first_s)
            self.close_idle()
        await self._wait_until_empty(drain_s - first_s)
        self.close_idle()
        for connection in self.crowd:
            connection.transport.abort()
        await self._wait_until_empty(CUT_S)
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None

    def close_idle(self, *, but_new: bool = False) -> None:
        """Close the connections that wait for a request. but_new: not for their first."""
        self.is_handing_over = False
        self.turn.catch_up()
        for connection in self.crowd:
            connection.close_if_idle(but_new=but_new)

    # For connections

    def add(self, connection: ServerConnection, fileno: int) -> bool:
        """Count a new connection. False: there are too many, or the server is closing."""
        self.turn.catch_up()  # who has asked something is not idle
        is_welcome = self.crowd.add(connection) and (not self.is_draining or self.is_handing_over)
        self._note_file(fileno, connection)
        return is_welcome

    def remove(self, connection: ServerConnection) -> None:
        self.crowd.remove(connection)
        if not self.crowd and self._emptied is not None:
            self._emptied.set()

    def request_id(self, given: bytes | None) -> str:
        """The client's own id when it is a safe one, else a new one."""
        if given is not None and _REQUEST_ID.fullmatch(given) is not None:
            return given.decode()
        self._id_count += 1
        return self._id_prefix + str(self._id_count)

    def judge(self, head: Request) -> HostlerError | None:
        """Say why a request is refused before its body is read, if it is."""
        hosts = self._allowed_hosts
        if hosts is not None and not head.is_known and not hosts.allows(head.fields[b"host"]):
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
        self.turn.catch_up()
        for connection in self.crowd:
            connection.check_deadlines(now_s, self._sweep_s)
        if self._certificates is not None:
            self._certificates.refresh()
        if self.is_shut and not self._opening and open_files() < self.files_end * OPEN_AT / SHUT_AT:
            for door in self._doors:
                task = door.begin()
                self._opening.add(task)
                task.add_done_callback(self._opened)
        self._sweep_handle = loop.call_later(self._sweep_s, self._sweep)

    def _note_file(self, fileno: int, newcomer: ServerConnection | None) -> None:
        """The kernel gives the lowest free number: with a high one nearly all files are in use."""
        if fileno >= self.files_end and not self.crowd.make_room(newcomer):
            self._shut()

    def _shut(self) -> None:
        """Leave new connections waiting: the files left are for requests that are here."""
        if any(door.is_tcp and door.is_open for door in self._doors):
            self.shut_count += 1
            log.warning("server.no_files", server=self.name, open=open_files(), most=most_files())
        for door in self._doors:
            if door.is_tcp:
                door.shut()

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning(
                "server.still_shut", server=self.name, why=str(error)
            )  # the sweep tries again

    async def _wait_until_empty(self, timeout_s: float) -> None:
        if not self.crowd:
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
