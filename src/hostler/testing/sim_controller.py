"""SimController: a controller as a host sees one, in the event loop of a test; what it hears is kept.

It plans nothing: a test says what should run, how it answers, and when it is away.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.config import HttpLimits
from hostler.app.tokens import new_token
from hostler.core.errors import HostlerError, NotFound
from hostler.core.hosts import (
    HostBeat,
    HostBeatAnswer,
    HostOrders,
    InstanceReport,
    Offer,
    OfferAnswer,
    Order,
    Role,
)
from hostler.core.model import WorkerType
from hostler.registry.control import ControlServer
from hostler.registry.joins import Joins
from hostler.registry.members import Members
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer
from hostler.wire.authority import Authority
from hostler.wire.identity import Identity, Peer, server_certificates
from hostler.wire.server import Exchange, HttpServer

HOST_ID = "host0001"
KEEPALIVE_S = 0.3
_JSON = ((b"content-type", b"application/json"),)
_NDJSON = ((b"content-type", b"application/x-ndjson"),)


class SimController:
    """Speaks the words of core/hosts.py on a Unix socket. `running` may be left and entered again.

    `SimControlPort` is the same behind a real control port, with tokens and certificates.
    """

    def __init__(self, socket: Path, *, incarnation: int = 1) -> None:
        self.socket = socket
        self.incarnation = incarnation
        self.version = 0
        self.orders: tuple[Order, ...] = ()
        self.next_beat_s = 0.2
        self.spread_s = 0.0
        self.wanted: tuple[str, ...] = ()
        self.is_mute = False  # streams stay open and say nothing
        self.refusal: HostlerError | None = None  # the answer to everything
        self.offer_refusal: HostlerError | None = None
        self.beats: list[HostBeat] = []
        self.offers: list[Offer] = []
        self.goodbyes = 0
        self.streams = 0  # opened so far
        self._news = asyncio.Event()
        self._heard = asyncio.Event()

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    # What a test says

    def order(self, *orders: Order, version: int | None = None) -> None:
        """Say what should run, all of it. version: the next one, if not given."""
        self.orders = orders
        self.version = self.version + 1 if version is None else version
        self._news.set()
        self._news = asyncio.Event()

    # What a test looks at

    @property
    def last(self) -> HostBeat:
        return self.beats[-1]

    def report(self, instance_id: str) -> InstanceReport | None:
        """What the last beat says of an instance."""
        if not self.beats:
            return None
        found = [one for one in self.last.instances if one.instance_id == instance_id]
        return found[0] if found else None

    def state(self, instance_id: str) -> str:
        """Its state in the last beat, "" when it is not in it."""
        report = self.report(instance_id)
        return report.state.value if report else ""

    async def until(self, is_true: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        """Wait until something is true, looking at every beat.

        Raises:
            AssertionError: it is not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not is_true():
                    self._heard.clear()
                    try:
                        async with asyncio.timeout(0.1):
                            await self._heard.wait()
                    except TimeoutError:
                        continue
        except TimeoutError as error:
            told = self.last.instances if self.beats else "no beat"
            raise AssertionError(
                f"not within {timeout_s:g} s: {what}; last told: {told}"
            ) from error

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SimController"]:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            server = HttpServer(self.handle, limits=HttpLimits(), name="sim")
            await server.listen_unix(self.socket)
            holding = tasks.create_task(asyncio.Event().wait(), name="sim.hold")
            streams: set[asyncio.Task[None]] = set()
            self._open_streams = streams
            try:
                yield self
            finally:
                holding.cancel()
                for stream in tuple(streams):
                    stream.cancel()
                await server.close(0.0)

    # Private

    def handle(self, exchange: Exchange) -> None:
        """Answer a host."""
        request = exchange.request
        if self.refusal is not None:
            exchange.send_error(self.refusal)
            return
        match request.method, request.path:
            case "POST", "/host/beat":
                exchange.send(200, self._beat(request.body), _JSON)
            case "GET", "/host/orders":
                task = self._tasks.create_task(self._stream(exchange), name="sim.orders")
                self._open_streams.add(task)
                task.add_done_callback(self._open_streams.discard)
                exchange.on_gone = task.cancel  # type: ignore[assignment]
            case "POST", "/host/offer":
                self._offer(exchange)
            case "POST", "/host/leave":
                self.goodbyes += 1
                exchange.send(200, b"{}", _JSON)
            case _:
                exchange.send_error(NotFound())
        self._heard.set()

    def _beat(self, body: bytes) -> bytes:
        self.beats.append(msgspec.json.decode(body, type=HostBeat))
        answer = HostBeatAnswer(
            next_beat_s=self.next_beat_s,
            spread_s=self.spread_s,
            wanted=self.wanted,
            incarnation=self.incarnation if self.version else 0,
            version=self.version,
        )
        self.wanted = ()
        return msgspec.json.encode(answer)

    def _offer(self, exchange: Exchange) -> None:
        if self.offer_refusal is not None:
            exchange.send_error(self.offer_refusal)
            return
        self.offers.append(msgspec.json.decode(exchange.request.body, type=Offer))
        number = len(self.offers)
        answer = OfferAnswer(instance_id=f"offered{number}", epoch=10 + number)
        exchange.send(200, msgspec.json.encode(answer), _JSON)
        offer = self.offers[-1]
        self.order(
            Order(
                instance_id=answer.instance_id,
                epoch=answer.epoch,
                replica=0,
                generation=1,
                model_name=offer.model_name,
                worker_type=offer.worker_type,
                engine=offer.engine,
            )
        )

    async def _stream(self, exchange: Exchange) -> None:
        self.streams += 1
        exchange.start(200, _NDJSON, None)
        told = -1
        while True:
            news = self._news
            if self.version and self.version != told and not self.is_mute:
                told = self.version
                exchange.write(msgspec.json.encode(self.list()) + b"\n")
            elif not self.is_mute:
                exchange.write(b"\n")
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    await news.wait()
            except TimeoutError:
                continue

    def list(self) -> HostOrders:
        """All that should run, as it is told."""
        return HostOrders(
            host_id=self.last.host_id if self.beats else HOST_ID,
            incarnation=self.incarnation,
            version=self.version,
            orders=self.orders,
        )


class SimControlPort(SimController):
    """A simulated controller whose hosts join by tokens and are known by their certificates."""

    def __init__(self, folder: Path, *, incarnation: int = 1) -> None:
        super().__init__(folder / "unused", incarnation=incarnation)
        self.tls_dir = folder
        self.authority = Authority.open(folder, ["localhost", "127.0.0.1"])
        self.store = MemoryStore()
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def token(self, role: Role = Role.HOST) -> str:
        """A new join token."""
        made = new_token(role, self.authority.fingerprint)
        self.store.save_token(made.stored)
        return made.plain

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SimController"]:
        sock = socket.create_server(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        writer = Writer("sim")
        members = Members(self.store, writer, time.time)
        server = ControlServer(members, Joins(members, self.authority))
        server.plug(Peer.HOST, self._serve)
        certificates = server_certificates(self.tls_dir, clients_must_show=False)
        async with asyncio.TaskGroup() as tasks, writer.running():
            self._tasks = tasks
            self._open_streams = set()
            async with server.running(sock, certificates):
                try:
                    yield self
                finally:
                    for stream in tuple(self._open_streams):
                        stream.cancel()

    # Private

    def _serve(self, exchange: Exchange, identity: Identity) -> bool:
        self.handle(exchange)
        return True


def echo_order(instance_id: str, *, epoch: int = 1, **fields: object) -> Order:
    """An order for one instance of the fake engine."""
    told: dict[str, object] = {
        "instance_id": instance_id,
        "epoch": epoch,
        "replica": 0,
        "generation": 1,
        "model_name": "echo",
        "worker_type": WorkerType.LLM.value,
        "engine": "fake",
        **fields,
    }
    return msgspec.convert(told, Order)
