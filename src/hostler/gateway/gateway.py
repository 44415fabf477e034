"""Gateway: the data plane's component. Routes requests to the right part; decides nothing itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import Protocol

import msgspec

from hostler.app.background import Background, begin
from hostler.app.component import BaseComponent, ComponentType
from hostler.app.config import Config
from hostler.core.change import Change
from hostler.core.errors import (
    HostlerError,
    Overloaded,
)
from hostler.core.request import Route, check_fields, read_model
from hostler.core.snapshot import InstanceView, KeyView, ModelView, Snapshot
from hostler.engines.counting import TokenQuestion, question
from hostler.gateway import tokens
from hostler.gateway.accounts import Accounts, Send
from hostler.gateway.admission import Admission
from hostler.gateway.answers import JSON_FIELD, own_error
from hostler.gateway.controller import ControllerLine
from hostler.gateway.demand import DemandTeller, Tell
from hostler.gateway.detours import Detours
from hostler.gateway.doubt import Doubts, Teller
from hostler.gateway.flights import Flights
from hostler.gateway.front import Front, known
from hostler.gateway.lanes import Lanes
from hostler.gateway.loads import LoadTeller
from hostler.gateway.loads import Tell as TellLoads
from hostler.gateway.metrics import CONTENT_TYPE, OTHER, GatewayMetrics
from hostler.gateway.neighbours import Neighbours
from hostler.gateway.probes import Prober, identity_proof
from hostler.gateway.relays import Relays
from hostler.gateway.routes import Auth, GatewayRoute, RouteTable
from hostler.gateway.sight import REQUESTS_PATH, Siblings, Sight
from hostler.gateway.spans import Spans
from hostler.gateway.table import gateway_table
from hostler.routing.router import Router
from hostler.wire.exchange import Exchange
from hostler.wire.identity import ClientContexts
from hostler.wire.turn import Turn

SWEEP_S = 1.0  # how exact deadlines of requests are kept
QUESTIONS_MAX = 64  # token counts under way at the same time
COUNT_TIMEOUT_S = 10.0
ENGINE_PREFIX = "/v1/engine"
_NO_STORE = (b"cache-control", b"no-store")
_OK = b'{"status":"ok"}'
_NOT_READY = b'{"status":"not ready"}'
_DEGRADED = b'{"status":"degraded"}'  # it serves, but no controller tells it news (F22)


class SnapshotSource(Protocol):
    """Where snapshots come from: `registry.mirror.SnapshotMirror`, or a test."""

    connected: bool

    @property
    def snapshot(self) -> Snapshot:
        """All of it. Made when asked for."""

    def listen(self, listener: Callable[[Change], None], /) -> None:
        """Call `listener` with every step to a newer one, and now with all there is."""


class Gateway(BaseComponent):
    """Answers users. `judge_head` and `handle`, of its Front, belong to one or more HttpServers."""

    name = ComponentType.GATEWAY

    def __init__(
        self,
        config: Config,
        source: SnapshotSource,
        admin_socket: Path,
        clock: Callable[[], float] = monotonic,
        tell_doubt: Teller | None = None,
        send_usage: Send | None = None,
        siblings: Siblings = tuple,
        tell_demand: Tell | None = None,
        tell_loads: TellLoads | None = None,
        tls: ClientContexts | None = None,
    ) -> None:
        """send_usage: how counts of usage get to who keeps them. siblings: sockets of other gateways.

        tell_demand: how the load of models that are scaled gets to who scales them.
        tell_loads: how gateways of other machines hear what we have, and we of them.
        tls: who we are, for instances on other hosts; None: there are none that we can reach.
        """
        settings = config.gateway
        self.metrics = GatewayMetrics()
        self.router = Router(
            queue_length=settings.queue_length,
            queue_wait_s=settings.queue_wait_s,
            eject_s=settings.eject_s,
            clock=clock,
        )
        self.accounts = Accounts(send_usage)
        self._config = config
        self._source = source
        self._admission = Admission(config.limits.json_depth, asks_usage=settings.ask_usage)
        self.turn = Turn()  # to be shared by the servers it answers through
        self._lanes = Lanes(settings, identity_proof, self.turn, tls)
        self._detours = Detours(self._admission, self.router, self.metrics)
        self._flights = Flights(self.router, self.metrics, settings.stall_s, self._lanes.pool)
        self.relays = Relays(
            settings,
            self.router,
            self._lanes,
            self.metrics,
            self.accounts,
            self._detours,
            self._flights,
            clock,
        )
        if config.telemetry.otlp_endpoint:
            self.relays.spans = self.metrics.spans = Spans(config.telemetry)
        self._front = Front(self._admission, self.metrics, self.relays, self._detours)
        self._sight = Sight(self.relays, siblings)
        self._controller = ControllerLine(admin_socket)
        self._doubts = Doubts(settings, self.router, self.relays, tell_doubt)
        self._prober = Prober(settings, self.router, self.relays.note_silence, self._lanes.pool)
        self._demand = DemandTeller(self.router, self.relays, tell_demand, clock)
        self._loads = LoadTeller(self.router, self._prober, tell_loads, clock)
        self._tasks: asyncio.TaskGroup | None = None
        self._questions = 0
        self._sweep_s = min(SWEEP_S, settings.keep_alive_s or SWEEP_S)
        self.metrics.gauges = self._gauges
        self.neighbours: Neighbours | None = None  # the other gateways of this machine
        self.table = RouteTable(self._routes())
        self._front.table = self.table
        self.judge_head, self.handle = self._front.judge_head, self._front.handle

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take snapshots, probe and keep deadlines."""
        self.turn.join(asyncio.get_running_loop())
        self._source.listen(self.take)
        spans = self.relays.spans
        async with spans.running() if spans else nullcontext(), asyncio.TaskGroup() as group:
            self._tasks = self._sight.tasks = self._flights.tasks = group
            work = [
                begin(group, Background.PROBE, self._prober.run()),
                begin(group, Background.SWEEP, self._sweep()),
                begin(group, Background.DOUBT, self._doubts.run()),
                begin(group, Background.ACCOUNTS, self.accounts.run()),
                begin(group, Background.DEMAND, self._demand.run()),
                begin(group, Background.LOADS, self._loads.run()),
            ]
            try:
                yield
            finally:
                self._tasks = self._sight.tasks = None
                self._flights.close()
                for task in work:
                    task.cancel()
                await self._loads.close()
                await self.accounts.close()
                await self._lanes.close()
                await self._controller.close()

    def take(self, change: Change) -> None:
        """Go on with a newer snapshot, one step from the one before."""
        self._admission.take(change)
        self._lanes.take(change)
        self._prober.take(change)
        if self.neighbours is not None:
            self.neighbours.take(change)
        self.router.take(change)
        self._flights.take(change)
        self._controller.take(change)

    # Private

    def _routes(self) -> Iterable[GatewayRoute]:
        def route(method: str, path: str, handler: object, auth: Auth) -> GatewayRoute:
            return GatewayRoute(method=method, path=path, handler=handler, auth=auth)  # type: ignore[arg-type]

        def work(path: str, kind: Route) -> GatewayRoute:
            return route("POST", path, self._front.work(kind), Auth.INFERENCE)

        yield route("GET", "/health", self._health, Auth.OPEN)
        yield route("GET", "/ready", self._ready, Auth.OPEN)
        yield route("GET", "/metrics", self._show_metrics, Auth.METRICS)
        yield route("GET", "/status", self._show_table, Auth.METRICS)
        yield route("GET", "/v1/models", self._list_models, Auth.INFERENCE)
        yield route("GET", "/v1/models/*", self._show_model, Auth.INFERENCE)
        yield work("/v1/chat/completions", Route.CHAT)
        yield work("/v1/completions", Route.COMPLETIONS)
        yield work("/v1/embeddings", Route.EMBEDDINGS)
        yield work("/v1/rerank", Route.RERANK)
        yield work("/rerank", Route.RERANK)
        yield route("POST", "/tokenize", self._tokenize, Auth.INFERENCE)
        yield route("POST", f"{ENGINE_PREFIX}/*", self._engine, Auth.INFERENCE)
        yield route("GET", REQUESTS_PATH, self._sight.list_requests, Auth.ADMIN)
        yield route("GET", f"{REQUESTS_PATH}/*", self._sight.show_request, Auth.ADMIN)
        for path in ("/api/v1", "/api/v1/*"):
            yield route("*", path, self._relay_to_controller, Auth.CONTROLLER)
        for path in ("/", "/console/*"):  # the console's files
            yield route("GET", path, self._relay_to_controller, Auth.OPEN)

    def _health(self, exchange: Exchange, key: KeyView | None) -> None:
        exchange.send(200, _OK, [JSON_FIELD, _NO_STORE])

    def _ready(self, exchange: Exchange, key: KeyView | None) -> None:
        is_known = self._source.snapshot.version > 0
        counted = self.router.known.count_usable
        if is_known and all(counted(m.name) for m in self.router.models() if m.wanted):
            told = _OK if self._source.connected else _DEGRADED
            exchange.send(200, told, [JSON_FIELD, _NO_STORE])
        else:
            exchange.send(503, _NOT_READY, [JSON_FIELD, _NO_STORE, (b"retry-after", b"2")])

    def _show_metrics(self, exchange: Exchange, key: KeyView | None) -> None:
        exchange.send(200, self.metrics.text(), [(b"content-type", CONTENT_TYPE)])

    def _show_table(self, exchange: Exchange, key: KeyView | None) -> None:
        table = gateway_table(
            self._source.snapshot,
            self.router,
            connected=self._source.connected,
            number=self.metrics.number,
            gateways=self.neighbours.count if self.neighbours is not None else 1,
        )
        exchange.send(200, msgspec.json.encode(table), [JSON_FIELD, _NO_STORE])

    def _list_models(self, exchange: Exchange, key: KeyView | None) -> None:
        models = [describe_model(model) for model in self._admission.models_for(known(key))]
        body = msgspec.json.encode({"object": "list", "data": models})
        exchange.send(200, body, [JSON_FIELD])

    def _show_model(self, exchange: Exchange, key: KeyView | None) -> None:
        name = exchange.request.path.removeprefix("/v1/models/")
        model = self._admission.find(name, known(key)).model
        exchange.send(200, msgspec.json.encode(describe_model(model)), [JSON_FIELD])

    def _engine(self, exchange: Exchange, key: KeyView | None) -> None:
        path = exchange.request.path.removeprefix(ENGINE_PREFIX)
        job = self._admission.engine_job(exchange.request, known(key), path)
        self.relays.begin(exchange, job)

    def _relay_to_controller(self, exchange: Exchange, key: KeyView | None) -> None:
        self._controller.relay(exchange)

    def _tokenize(self, exchange: Exchange, key: KeyView | None) -> None:
        body = self._admission.body(exchange.request)
        terms = self._admission.find(read_model(body), known(key))
        check_fields(
            body, terms.rules[Route.TOKENIZE], engine=terms.dialect.name, model=terms.model.name
        )
        if self._tasks is None or self._questions >= QUESTIONS_MAX:
            raise Overloaded("too many token counts are under way", retry_after_s=1)
        instance = self.router.select(terms.model.name)
        asked = question(body, terms.dialect, instance)
        self._questions += 1
        task = self._tasks.create_task(self._count(exchange, asked, instance), name="tokenize")
        task.add_done_callback(self._counted)

        def gone() -> None:
            task.cancel()

        exchange.on_gone = gone

    async def _count(
        self, exchange: Exchange, asked: TokenQuestion, instance: InstanceView
    ) -> None:
        try:
            status, body = await tokens.ask(
                asked, instance, COUNT_TIMEOUT_S, self._lanes.pool(instance)
            )
            exchange.send(status, body, [JSON_FIELD])
        except HostlerError as error:
            exchange.send(*own_error(error))

    def _counted(self, task: asyncio.Task[None]) -> None:
        self._questions -= 1

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            self.relays.end_expired()
            self.relays.keep_alive()
            await self._lanes.close_unused(lambda instance_id: instance_id in self.router.load)

    def _gauges(self) -> Iterable[tuple[str, str, Mapping[str, float]]]:
        names = [model.name for model in self.router.models()]
        load = self.router.load
        in_flight = dict.fromkeys(names, 0.0)
        for instance in self._source.snapshot.instances:
            name = instance.model_name if instance.model_name in in_flight else OTHER
            in_flight[name] = in_flight.get(name, 0.0) + load.get(instance.instance_id, 0)
        yield "hostler_in_flight", "Requests in instances now.", in_flight
        yield (
            "hostler_waiting",
            "Requests waiting for a slot now.",
            {name: float(self.router.waiting(name)) for name in names},
        )
        yield (
            "hostler_usable_instances",
            "Instances that take requests now.",
            {name: float(self.router.known.count_usable(name)) for name in names},
        )
        yield (
            "hostler_wanted_instances",
            "Instances that are wished for; 0: it is stopped.",
            {model.name: float(model.wanted) for model in self.router.models()},
        )


def describe_model(model: ModelView) -> dict[str, object]:
    """The OpenAI model object, with what is useful beyond it."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at_s,
        "owned_by": "hostler",
        "type": model.worker_type.value,
        "aliases": list(model.aliases),
        "max_model_len": model.context_length,
        "wanted": model.wanted,  # instances; 0: it is stopped
    }
