"""The routes of the control port for hosts: beat, orders, offer, leave.

Who asks has been proven before (the certificate of its connection); what it may speak of is decided here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import Conflict, HostlerError
from hostler.core.hosts import HostBeat, Offer, OfferAnswer, Role
from hostler.registry.host import Host
from hostler.registry.hosts import HostBook
from hostler.registry.server import JSON, decode
from hostler.registry.watch import KEEPALIVE_S, NDJSON
from hostler.wire.server import Exchange

log = logger(__name__)

TakeOffer = Callable[[str, Offer], Awaitable[OfferAnswer]]


class Goodbye(msgspec.Struct, frozen=True, kw_only=True):
    """POST /host/leave. run_id: of the process that leaves; as in a beat."""

    run_id: str = ""


class HostRoutes:
    """What hosts may ask. One stream of orders a host: a newer one ends the one before."""

    def __init__(self, book: HostBook, take_offer: TakeOffer) -> None:
        """take_offer: makes a worker that was brought by hand one of ours."""
        self._book = book
        self._take_offer = take_offer
        self._tasks: asyncio.TaskGroup | None = None
        self._streams: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                for stream in self._streams.values():
                    stream.cancel()

    def handle(self, exchange: Exchange, host_id: str, address: str) -> bool:
        """Answer a host; False: this is none of the routes here.

        host_id: by its certificate. address: where its connection comes from.
        """
        request, tasks = exchange.request, self._tasks
        match request.method, request.path:
            case "POST", "/host/beat":
                _answer(exchange, lambda: self._beat(host_id, request.body, address))
            case "POST", "/host/leave":
                _answer(exchange, lambda: self._leave(host_id, request.body))
            case "GET", "/host/orders" if tasks is not None:
                self._open_stream(tasks, exchange, host_id)
            case "POST", "/host/offer" if tasks is not None:
                tasks.create_task(self._offer(exchange, host_id), name="host.offer")
            case _:
                return False
        return True

    # Private

    def _beat(self, host_id: str, body: bytes, address: str) -> bytes:
        return msgspec.json.encode(self._book.beat(host_id, decode(body, HostBeat), address))

    def _leave(self, host_id: str, body: bytes) -> bytes:
        said = decode(body, Goodbye) if body else Goodbye()
        self._book.leave(host_id, said.run_id)
        return b"{}"

    async def _offer(self, exchange: Exchange, host_id: str) -> None:
        try:
            offer = decode(exchange.request.body, Offer)
            if self._book.host(host_id).role is not Role.WORKER:
                raise Conflict(f"host {host_id!r} joined to take orders, not to bring a worker")
            answer = await self._take_offer(host_id, offer)
            exchange.send(200, msgspec.json.encode(answer), JSON)
        except HostlerError as error:
            exchange.send_error(error)

    def _open_stream(self, tasks: asyncio.TaskGroup, exchange: Exchange, host_id: str) -> None:
        try:
            host = self._book.host(host_id)
        except HostlerError as error:
            exchange.send_error(error)
            return
        if (before := self._streams.get(host_id)) is not None:
            before.cancel()
        task = tasks.create_task(self._stream(exchange, host), name=f"orders.{host_id}")
        self._streams[host_id] = task
        exchange.on_gone = task.cancel  # type: ignore[assignment]

    async def _stream(self, exchange: Exchange, host: Host) -> None:
        task = asyncio.current_task()
        exchange.start(200, NDJSON, None)
        version = 0
        try:
            while not (host.is_removed and host.orders and version == host.orders.version):
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        orders = await host.orders_after(version)
                except TimeoutError:
                    exchange.write(b"\n")
                    continue
                version = orders.version
                exchange.write(msgspec.json.encode(orders) + b"\n")
            exchange.end()
        finally:
            if not exchange.is_over:
                exchange.abort()
            if self._streams.get(host.host_id) is task:
                del self._streams[host.host_id]


# Private


def _answer(exchange: Exchange, work: Callable[[], bytes]) -> None:
    try:
        exchange.send(200, work(), JSON)
    except HostlerError as error:
        exchange.send_error(error)
