"""The routes of registry.sock: register, beat, deregister, doubt, watch, usage, demand, loads.

Only its user reaches it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from hostler.app.config import HttpLimits
from hostler.app.telemetry import logger
from hostler.core.errors import (
    BadRequest,
    Conflict,
    HostlerError,
    NotFound,
)
from hostler.core.fleet import Beat, BeatAnswer, Departure, Doubt, Registration
from hostler.core.loads import LoadReport
from hostler.core.scaling import DemandReport
from hostler.core.snapshot import Spoken
from hostler.core.usage import UsageBatch
from hostler.registry.loads import LoadSum
from hostler.registry.registry import Registry
from hostler.registry.watch import watch
from hostler.wire.server import Exchange, HttpServer

JSON = ((b"content-type", b"application/json"),)

LOADS = ("POST", "/loads")
_OF_GATEWAYS = frozenset({("POST", "/doubt"), ("POST", "/usage"), ("POST", "/demand")})

T = TypeVar("T")

log = logger(__name__)


class RegistryServer:
    """Serves a registry on a Unix socket."""

    def __init__(
        self,
        registry: Registry,
        socket_path: Path,
        take_usage: Callable[[UsageBatch], Awaitable[object]] | None = None,
        take_demand: Callable[[DemandReport], None] | None = None,
        loads: LoadSum | None = None,
    ) -> None:
        """take_usage: keeps what a gateway has counted. take_demand: hears what it has to do now.
        loads: adds up what all gateways have. None: nobody does.
        """
        self._registry = registry
        self._take_usage = take_usage
        self._take_demand = take_demand
        self._loads = loads
        self._socket_path = socket_path
        self._server = HttpServer(self._handle, limits=HttpLimits(), name="registry")
        self._tasks: asyncio.TaskGroup | None = None
        self._watches: set[tuple[str, Exchange]] = set()  # by gateways of other machines
        self._routes: dict[tuple[str, str], Callable[[bytes], bytes]] = {
            ("POST", "/register"): self._register,
            ("POST", "/beat"): self._beat,
            ("POST", "/deregister"): self._deregister,
            ("POST", "/doubt"): self._doubt,
            ("POST", "/demand"): self._demand,
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._server.listen_unix(self._socket_path)
            watchers = tasks.create_task(asyncio.Event().wait(), name="registry.hold")
            try:
                yield
            finally:
                watchers.cancel()
                await self._server.close(0.0)

    def is_watching(self, gateway_id: str) -> bool:
        """Does this gateway of another machine mirror us now?"""
        self._watches = {one for one in self._watches if not one[1].is_over}
        return any(gateway_id == of for of, _ in self._watches)

    def serve_gateway(self, exchange: Exchange, relay_port: int, gateway_id: str) -> bool:
        """Answer a gateway on another machine, as those here; False: it has no such address.

        relay_port: where the relay of this machine stands before the engines here.
        """
        request = exchange.request
        asked = (request.method, request.path)
        if asked == ("GET", "/watch"):
            watch(self._registry, exchange, self._tasks, relay_port)
            self._watches = {one for one in self._watches if not one[1].is_over}
            self._watches.add((gateway_id, exchange))
        elif asked == LOADS:
            self._answer_loads(exchange, gateway_id)
        elif asked in _OF_GATEWAYS:
            self._handle(exchange)
        else:
            return False
        return True

    # Private

    def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.method == "GET" and request.path == "/watch":
            watch(self._registry, exchange, self._tasks)
            return
        if (request.method, request.path) == LOADS:
            self._answer_loads(exchange, "")
            return
        if (request.method, request.path) == ("POST", "/usage") and self._tasks is not None:
            self._tasks.create_task(self._usage(exchange), name="registry.usage")
            return
        route = self._routes.get((request.method, request.path))
        if route is None:
            exchange.send_error(NotFound(f"the registry has no {request.method} {request.path}"))
            return
        try:
            exchange.send(200, route(request.body), JSON)
        except HostlerError as error:
            exchange.send_error(error)

    def _register(self, body: bytes) -> bytes:
        return msgspec.json.encode(self._registry.register(decode(body, Registration)))

    def _beat(self, body: bytes) -> bytes:
        return msgspec.json.encode(self._registry.beat(decode(body, Beat)))

    def _deregister(self, body: bytes) -> bytes:
        self._registry.depart(decode(body, Departure))
        return msgspec.json.encode(BeatAnswer(next_beat_s=0.0, registered=False))

    def _doubt(self, body: bytes) -> bytes:
        doubt = decode(body, Doubt)
        record = self._registry.record(doubt.instance_id)
        if record is None or not record.expected.is_ours:
            self._registry.doubts.take(doubt, None, 0, None)
        else:
            one = record.instance
            self._registry.doubts.take(doubt, one.model_name, one.epoch, one.state)
        return msgspec.json.encode(BeatAnswer(next_beat_s=0.0))

    def _demand(self, body: bytes) -> bytes:
        report = decode(body, DemandReport)
        if self._take_demand is not None:
            self._take_demand(report)
        return msgspec.json.encode(BeatAnswer(next_beat_s=0.0))

    def _answer_loads(self, exchange: Exchange, machine: str) -> None:
        try:
            report = decode(exchange.request.body, LoadReport)
            if self._loads is None:
                raise NotFound("nobody adds up loads here")
            exchange.send(200, msgspec.json.encode(self._loads.take(machine, report)), JSON)
        except HostlerError as error:
            exchange.send_error(error)

    async def _usage(self, exchange: Exchange) -> None:
        """Answer when it is kept; a gateway sends a batch again until then."""
        try:
            batch = decode(exchange.request.body, UsageBatch)
            if self._take_usage is not None:
                await self._take_usage(batch)
            exchange.send(200, b"{}", JSON)
        except HostlerError as error:
            exchange.send_error(error)


def decode(body: bytes, kind: type[T]) -> T:
    """Return a message of ours.

    Raises:
        Conflict: of a protocol that is not spoken here. BadRequest: it is something else.
    """
    try:
        says_number = "protocol" in kind.__annotations__
        if says_number and (refusal := msgspec.json.decode(body, type=Spoken).refusal()):
            log.error("registry.protocol", kind=kind.__name__, why=refusal)
            raise Conflict(refusal)
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"{kind.__name__}: {error}") from error
