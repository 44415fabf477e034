"""Host: a machine that works for a controller on another one. Its workers report here as at a controller.

The controller says what should run; what does run is known here alone. Whatever is above may be away for
any length: what runs goes on, and is adopted by the next host process of this folder.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.app.telemetry import logger
from hostler.catalog.catalog import Catalog
from hostler.catalog.sources import sweep
from hostler.core.errors import ConfigError, HostlerError
from hostler.core.hosts import HostFacts, HostOrders, Order
from hostler.core.launch import Launch
from hostler.core.lifecycle import ALIVE, Instance, Signal, State
from hostler.core.model import worker_key
from hostler.core.worker import OperatorEvent
from hostler.manager.controllers import Controllers
from hostler.manager.files import ModelFiles
from hostler.manager.head_fetch import HeadFetch
from hostler.manager.host_kept import Notebook
from hostler.manager.host_link import Link
from hostler.manager.host_orders import (
    Action,
    End,
    Ended,
    Forget,
    Leave,
    Recall,
    Start,
    decide,
    rank,
)
from hostler.manager.host_rules import accept, facts, startable
from hostler.manager.host_voice import Voice
from hostler.manager.launches import LaunchBook
from hostler.manager.membership import Membership
from hostler.manager.plan import GONE
from hostler.manager.silence import SecondOpinion
from hostler.manager.workers import LocalWorkers
from hostler.registry.expected import Expected
from hostler.registry.record import Record
from hostler.registry.registry import Registry
from hostler.registry.server import RegistryServer
from hostler.storage.store import Store
from hostler.storage.writer import Writer

log = logger(__name__)

_LOOK_EVERY_S = 1.0
_ANNOUNCE_S = 0.5  # from "draining" in a beat to SIGTERM: gateways elsewhere hear of it first
_STOP_MARGIN_S = 5.0


class Host:
    """Obeys the lists of one controller, and tells it what is. A context: `running`."""

    def __init__(
        self,
        paths: StatePaths,
        config: Config,
        store: Store,
        membership: Membership,
        controllers: Controllers,
        *,
        hear: Callable[[OperatorEvent], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        store: of launches, this folder's own. hear: told what happens to instances, for people here.
        """
        self.paths = paths
        self.config = config
        self.run_id = secrets.token_hex(6)
        self.is_draining = False
        self.finished = asyncio.Event()  # there is nothing more to do
        self.failure: HostlerError | None = None
        self.refuse: Callable[[Collection[str]], None] = lambda gateways: None  # its relay's
        self.serving: Callable[[], AbstractAsyncContextManager[None]] = nullcontext  # its relay
        self._rules = rules = membership.rules
        self._name_told = membership.name
        self._engines = startable(rules)
        self._hear = hear
        self._clock = clock
        self._store = store
        self._wake = asyncio.Event()
        self._ending: set[str] = set()
        self._obeyed = (0, 0)  # the rank of the list that was acted upon
        self._writer = Writer("store")
        self.notebook = Notebook(paths.host_orders, self._writer)
        self.registry = Registry(config.heartbeat, clock, moved=self._moved)
        head = HeadFetch(controllers, paths.models_dir)
        files = ModelFiles(paths.models_dir, Catalog(), tell=self._tell, clock=clock, head=head)
        self.workers = LocalWorkers(
            paths=paths,
            config=config,
            book=LaunchBook(store, self._writer),
            registry=self.registry,
            files=files,
            tell=self._tell,
            clock=clock,
            announce_s=_ANNOUNCE_S,
            memory_bytes=rules.memory_bytes,
            held=self.notebook.held,
        )
        self.voice = Voice(
            membership.host_id,
            self.run_id,
            records=self._spoken,
            facts=self._facts,
            rank=self._rank_told,
            workers=self.workers,
        )
        self.link = Link(
            controllers,
            self.voice,
            config.host,
            known=self.notebook.rank,
            take=self._take,
            dismissed=self._dismissed,
            clock=clock,
        )

    # Looks

    @property
    def is_fenced(self) -> bool:
        """Has no controller been heard for so long that nothing new may be served?"""
        after_s = self.config.host.fence_after_s
        return bool(after_s) and self.link.silence_s > after_s

    def sockets(self, instance_id: str) -> tuple[str, str] | None:
        """Where the engine and the agent of an instance answer, by the name that its controller gave it.

        None: it is not here (any more), or nothing may be asked here now.
        """
        own = self.own_name(instance_id)
        record = self.registry.record(own)
        if record is None or record.instance.state not in ALIVE or self.is_fenced:
            return None
        engine = record.expected.endpoint.socket
        if not engine and (path := self.paths.engine_socket(own)).exists():
            engine = str(path)  # it was adopted, and has not said so yet: it served all along
        return (engine, str(self.paths.agent_socket(own))) if engine else None

    def own_name(self, instance_id: str) -> str:
        """What an instance is called here."""
        return instance_id

    @property
    def alive(self) -> list[str]:
        """The instances that have a process, or will have one."""
        return [one.instance_id for one in self.registry.instances() if one.state not in GONE]

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Adopt what runs, obey the list that was kept, then whatever is heard. Ends no process.

        Raises:
            StartupError: another one serves this folder.
        """
        self.paths.claim()
        async with AsyncExitStack() as stack:
            stack.callback(self.paths.leave)
            await stack.enter_async_context(self._writer.running())
            await asyncio.to_thread(sweep, self.paths.models_dir)
            launches = self._store.launches()
            for running in (self.registry.running, self.workers.running):
                await stack.enter_async_context(running())
            self._recall(launches)
            agent_socket = self.paths.agent_socket
            opinion = SecondOpinion(self.registry, self.config, agent_socket, clock=self._clock)
            await stack.enter_async_context(opinion.running())
            server = RegistryServer(self.registry, self.paths.registry_socket)
            await stack.enter_async_context(server.running())
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            looking = begin(tasks, Background.HOST_LOOK, self._look_on())
            # first: whoever hears of this host finds it serving
            await stack.enter_async_context(self.serving())
            await stack.enter_async_context(self.link.running())
            try:
                yield
            finally:
                looking.cancel()

    async def stop(self) -> None:
        """Drain and end every worker, and say goodbye. `hasten` makes it quick."""
        self.is_draining = self.voice.is_draining = True
        self.link.hurry()
        for one in self.registry.instances():
            if one.state not in GONE and one.state is not State.DRAINING:
                self.workers.drain(one.instance_id, "its host is leaving")
        life = self.config.life
        limit_s = life.drain_timeout_s + life.kill_grace_s + _STOP_MARGIN_S
        try:
            async with asyncio.timeout(limit_s):
                while self.alive:
                    await self.registry.news().wait()
        except TimeoutError:
            log.warning("host.stop_late", alive=self.alive)
            await self.workers.hasten()
        await self.workers.end_all()
        await self.notebook.save()
        await self.link.leave()

    async def hasten(self) -> None:
        """End every worker at once, however busy."""
        await self.workers.hasten()

    # Private: what should be

    async def _take(self, orders: HostOrders) -> None:
        self.refuse(orders.refused)  # first: whatever the disk does
        await self.notebook.take(orders)
        self._wake.set()

    async def _look_on(self) -> None:
        while True:
            self._wake.clear()
            self.look()
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def look(self) -> list[Action]:
        """Compare once, and act; without a list nothing is known, and nothing is done."""
        kept = self.notebook.kept
        if kept.orders is None:
            return []
        actions = decide(kept.orders.orders, self.registry.instances(), kept.ended)
        if self.is_draining:  # nothing begins; what is nobody's any more is not waited for
            actions = [one for one in actions if isinstance(one, End)]
        self._carry_out(actions)
        self._obeyed = rank(kept.orders)
        return actions

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            try:
                self._do(action)
            except Exception as error:  # boundary: one instance's trouble stops nobody else's
                log.error("host.order_failed", action=repr(action), error=error)

    def _do(self, action: Action) -> None:
        match action:
            case Start(order=order):
                self._start(order)
            case Leave(instance_id=instance_id, reason=reason):
                self.workers.drain(instance_id, reason)
            case End(instance_id=instance_id, reason=reason):
                if instance_id not in self._ending:
                    self._ending.add(instance_id)
                    self.workers.drain(instance_id, reason, now=True)
            case Forget(instance_id=instance_id):
                self._ending.discard(instance_id)
                self.workers.cut(instance_id)
                self.registry.forget(instance_id)
            case Recall(order=order, ended=ended):
                self._bury(self._instance(order), _expected(order), ended)

    def _start(self, order: Order) -> None:
        instance = self._instance(order)
        try:
            deployment = accept(order, self._rules)
        except HostlerError as error:
            log.warning("host.refused", instance_id=order.instance_id, why=error.message)
            how = Ended(state=State.FAILED, reason=error.message, error_code=error.code)
            self._bury(instance, _expected(order), how)
            return
        self.workers.launch(deployment, instance.replica, instance)

    def _bury(self, instance: Instance, expected: Expected, ended: Ended) -> None:
        """Have a record of one that has no process any more, or never had."""
        self.registry.add(instance, expected)
        record = self.registry.record(instance.instance_id)
        if record is not None:
            record.error_code = ended.error_code
        is_failed = ended.state is State.FAILED
        signal = Signal.EXITED if is_failed else Signal.DRAIN
        self.registry.post(instance.instance_id, signal, ended.reason)

    def _instance(self, order: Order) -> Instance:
        return Instance(
            instance_id=order.instance_id,
            worker_key=worker_key(order.model_name, order.worker_type),
            model_name=order.model_name,
            replica=order.replica,
            epoch=order.epoch,
            generation=order.generation,
            since_s=self._clock(),
        )

    # Private: what is

    def _spoken(self) -> list[Record]:
        """All but the adopted ones that have not said yet how they are."""
        unheard = self.registry.unheard
        return [r for r in self.registry.records() if r.instance.instance_id not in unheard]

    def _recall(self, launches: Sequence[Launch]) -> None:
        """Of processes that ended while no host process was there: they had their life."""
        for launch in launches:
            if self.registry.record(launch.instance_id) is not None:
                continue
            one = Instance(
                instance_id=launch.instance_id,
                worker_key=launch.worker_key,
                model_name=launch.spec.model_name,
                replica=launch.replica,
                epoch=launch.epoch,
                generation=launch.generation,
                since_s=self._clock(),
            )
            expected = Expected(
                worker_type=launch.spec.worker_type,
                engine=launch.spec.engine,
                concurrency=launch.spec.concurrency,
            )
            gone = Ended(
                state=State.FAILED, reason="its process is gone: its host process was away"
            )
            self._bury(one, expected, self.notebook.kept.ended.get(launch.instance_id, gone))

    def _rank_told(self) -> tuple[int, int]:
        """Of the list that is obeyed. None is claimed while adopted workers have not said who they are:
        what a beat leaves out would be taken for gone.
        """
        return (0, 0) if self.registry.unheard else self._obeyed

    def _moved(self, before: Instance, after: Instance) -> None:
        """Every change of a state passes here, once."""
        event = OperatorEvent(
            kind=f"instance.{after.state.value}",
            model=after.model_name,
            instance_id=after.instance_id,
            message=after.reason,
        )
        log.info(event.kind, model=event.model, instance_id=event.instance_id, why=event.message)
        self._hear(event)
        if after.state in GONE or after.state is State.DRAINING:
            record = self.registry.record(after.instance_id)
            code = record.error_code if record else ""
            how = Ended(state=after.state, reason=after.reason, error_code=code)
            self.notebook.note_end(after.instance_id, how)
        if after.state in GONE:
            self.workers.cut(after.instance_id)
        self._wake.set()
        self.link.hurry()

    def _tell(self, event: OperatorEvent) -> None:
        """Progress goes to the controller; moves it sees by the reports."""
        self.voice.tell(event)
        self._hear(event)

    def _dismissed(self, why: str) -> None:
        """The controller does not know this host: nothing here is anybody's any more.

        One that leaves is told so as well, when its last beat comes after its goodbye.
        """
        if not self.is_draining:
            self.failure = ConfigError(  # starting again cannot help
                f"the controller refuses this host: {why}; its models end here. If it was removed by "
                "mistake, `hostler host join` joins again, with a new token"
            )
            self.finished.set()

    def _facts(self) -> HostFacts:
        return facts(
            self._name_told,
            self._rules,
            self.paths.models_dir,
            engines_here=self._engines,
            promised_bytes=self.workers.memory.promised_bytes,
        )


# Private


def _expected(order: Order) -> Expected:
    return Expected(
        worker_type=order.worker_type, engine=order.engine, concurrency=order.concurrency
    )
