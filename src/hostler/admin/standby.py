"""StandBy: what a controller that does not lead answers, and how it keeps the workers of its machine.

Every admin request gets 503 `standby`, which tells an administrator who leads. While nobody else is
known to lead it holds the registry's socket: workers that a controller of this folder left go on serving
through an outage of the database, however long. Once another one leads it lets go, and they end by
themselves (`life.orphan_grace_s`). Hosts that call are turned away at once: who leads is their next try.
Not here: when it leads (candidacy.py).
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from hostler.app.auth import KeyRing, Scope, require
from hostler.app.config import HttpLimits
from hostler.app.paths import StatePaths
from hostler.app.record import StandbyRecord, write_standby
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError, Standby
from hostler.core.snapshot import KeyView
from hostler.wire.exchange import Exchange
from hostler.wire.server import HttpServer

log = logger(__name__)


class StandBy:
    """Answers in the place of a controller until one leads here."""

    def __init__(self, paths: StatePaths, name: str, control: socket.socket | None = None) -> None:
        """name: what the others call this controller. control: the control port's listening socket."""
        self._paths = paths
        self._name = name
        self._control = control
        self._since_at_s = time.time()
        self._ring: KeyRing | None = None  # None: the database has not told its keys
        self._record: StandbyRecord | None = None
        self._text = "it has not looked yet who leads"
        self._admin = HttpServer(self._answer, limits=HttpLimits(), name="standby")
        self._registry: HttpServer | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer while the block lasts; afterwards its sockets are free for who leads."""
        await self._admin.listen_unix(self._paths.admin_socket)
        loop = asyncio.get_running_loop()
        try:
            await self.hold_workers()
            if self._control is not None:
                self._control.setblocking(False)
                loop.add_reader(self._control, self._turn_away, self._control)
            yield
        finally:
            if self._control is not None:
                loop.remove_reader(self._control)
            await self.let_workers_go()
            await self._admin.close(0.2)
            write_standby(self._paths, None)
            self._paths.leave()  # who leads makes it again

    def know(self, keys: Iterable[KeyView]) -> None:
        """The keys by which an administrator is told from others."""
        self._ring = KeyRing(keys)

    def tell(self, text: str, leader: str = "") -> None:
        """Say why this controller does not lead: in its answers, in the log, to programs here."""
        if self._record is not None and (self._record.leader, self._text) == (leader, text):
            return
        self._text = text
        self._record = StandbyRecord(
            text=f"this controller ({self._name}) stands by: {text}",
            leader=leader,
            pid=os.getpid(),
            since_at_s=self._since_at_s,
        )
        write_standby(self._paths, self._record)
        log.info("controller.stands_by", name=self._name, leader=leader, why=text)

    async def hold_workers(self) -> None:
        """Be there for the workers of this folder, and tell them nothing."""
        if self._registry is None:
            self._registry = HttpServer(_silence, limits=HttpLimits(), name="standby registry")
            await self._registry.listen_unix(self._paths.registry_socket)

    async def let_workers_go(self) -> None:
        """Nobody of this folder wants them any more."""
        if (registry := self._registry) is not None:
            self._registry = None
            await registry.close(0.0)

    # Private

    def _turn_away(self, control: socket.socket) -> None:
        """Whoever waits at the control port asks elsewhere sooner than after a deadline."""
        with suppress(OSError):  # nobody waits any more
            while True:
                control.accept()[0].close()

    def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if (request.method, request.path) == ("GET", "/health"):
            exchange.send(200, b'{"status":"standby"}', _JSON)
            return
        try:
            if self._ring is not None:
                require(self._ring.identify(request.fields.get(b"authorization")), Scope.ADMIN)
                raise Standby(
                    f"this controller ({self._name}) stands by: {self._text}", retry_after_s=2
                )
            raise Standby(
                "this controller stands by, and has not reached its database yet", retry_after_s=2
            )
        except HostlerError as error:
            exchange.send_error(error)


# Private

_JSON = ((b"content-type", b"application/json"),)


def _silence(exchange: Exchange) -> None:
    exchange.send_error(Standby(retry_after_s=1))
