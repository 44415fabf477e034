"""LocalWorkerManager: the contract on one machine, in any program. Workers are processes of their own.

It opens a port for other machines alone, where its settings ask for one: workers here report to a socket
in the state folder. The controller process is this manager with a store on disk and the admin API in front.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from hostler.app.background import Background, begin
from hostler.app.config import Config, ModelConfig, state_dir
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.paths import StatePaths
from hostler.app.tasks import reason_of
from hostler.catalog.catalog import Catalog
from hostler.catalog.sources import sweep
from hostler.core.deployment import Deployment, Wish
from hostler.core.errors import HostlerError, StartupError, UpstreamTimeout
from hostler.core.lifecycle import Instance, State
from hostler.core.worker import (
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
)
from hostler.manager.apply import Applier
from hostler.manager.calls import Caller
from hostler.manager.control_port import control_port
from hostler.manager.files import ModelFiles
from hostler.manager.following import FollowingRouter
from hostler.manager.joinable import Joinable
from hostler.manager.journal import Journal
from hostler.manager.launches import LaunchBook
from hostler.manager.machines import Machines
from hostler.manager.progress import Progress, given_up
from hostler.manager.ray_place import ray_places
from hostler.manager.reconcile import Reconciler
from hostler.manager.renewals import Renewals
from hostler.manager.room import Room
from hostler.manager.scaling import Autoscaler
from hostler.manager.servers import GivenServers
from hostler.manager.silence import SecondOpinion
from hostler.manager.usage import UsageBook
from hostler.manager.views import check_own_name
from hostler.manager.waiting import Waiting
from hostler.manager.wishes import Wishes
from hostler.manager.workers import LocalWorkers, is_hopeless
from hostler.registry.loads import LoadSum
from hostler.registry.members import Members
from hostler.registry.registry import Registry
from hostler.registry.server import RegistryServer
from hostler.routing.demand import demand_of
from hostler.routing.router import Router
from hostler.storage.memory import MemoryStore
from hostler.storage.store import Store
from hostler.storage.writer import Writer


class LocalWorkerManager(Joinable):
    """Starts model workers on this machine and keeps them running.

    `async with LocalWorkerManager() as manager:` brings the default models to life; `models=()` none but
    those that were started by calls and are in the store, `declare=False` all that are in the store.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        store: Store | None = None,
        models: Sequence[ModelConfig] | None = None,
        declare: bool = True,
        clock: Callable[[], float] = time.monotonic,
        control: socket.socket | None = None,
        relay_port: int = 0,
    ) -> None:
        """Start nothing yet.

        store: what survives; in memory when left out: then what runs on other machines ends with this
            manager, as nobody could find it again. models: what to keep running; the config's, or the
            default models, when left out. clock: monotonic seconds.
        control: the control port's listening socket; bound here when left out and `config.control` asks
            for one. relay_port: of the relay that whoever gives the socket has before the engines here.
        """
        super().__init__()
        self.config = config or Config()
        self.paths = StatePaths(state_dir(self.config))
        self.store = store or MemoryStore()
        self.is_lasting = store is not None
        self.catalog = Catalog()
        self.clock = clock
        self._declared = self.config.models if models is None else tuple(models)
        self._declare = declare
        self._control = control, relay_port
        self._main: asyncio.Task[None] | None = None
        self.is_stopping = False

    # Life

    async def start(self) -> None:
        if self._main is not None:
            raise StartupError("this worker manager is running already")
        self.paths.claim()
        await self._build()
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stop_asked = asyncio.Event()
        # One task holds every part, as task groups must be left where they were entered.
        self._main = asyncio.ensure_future(self._run(up))  # root: awaited by stop()
        try:
            await asyncio.shield(
                asyncio.wait([up, self._main], return_when=asyncio.FIRST_COMPLETED)
            )
            if self._main.done():
                await self._main
            await up
        except BaseException as error:
            self._main.cancel()
            self._main = None
            if (reason := reason_of(error)) is not None:
                raise reason from None
            raise
        try:
            await self._started()
        except BaseException:  # a listener's: nothing is left running
            await self.stop(ignore_exception=True)
            raise

    async def stop(self, ignore_exception: bool = False) -> None:
        if self._main is None:
            return
        self._stopped()
        try:
            self.is_stopping = True
            if not self._main.done():  # a dead one carries nothing out
                await self._drain_all()
        except HostlerError:
            if not ignore_exception:
                raise
        finally:
            await self.workers.end_all()
            self._stop_asked.set()
            main, self._main = self._main, None
            await main

    async def watch(self) -> None:
        """Return when this manager was stopped.

        Raises:
            ExceptionGroup: a part of it died. Nothing is carried out any more; the workers still run.
        """
        if self._main is not None:
            await asyncio.shield(self._main)

    async def abandon(self) -> None:
        """Let go of everything and end no process: the next manager on this store adopts them."""
        main, self._main = self._main, None
        if main is not None and main.cancel():
            await asyncio.wait([main])

    def keys_changed(self) -> None:
        """Publish the keys of the store."""
        self.registry.set_keys([key.view for key in self.store.keys()])

    async def hasten(self) -> None:
        """End every worker at once, however busy."""
        await self.workers.hasten()

    # Orders

    async def model_startup(
        self, request: WorkerStartupRequest, *, wait: bool = True
    ) -> list[WorkerRunData]:
        self.check_running()
        deployment, _ = await self.order_start(request)
        if wait:
            await self.until_ready(deployment)
        return self.run_data(deployment.name)

    async def order_start(self, request: WorkerStartupRequest) -> tuple[Deployment, bool]:
        """Write down that a model should run; a crash loop that was given up is tried anew."""
        failed = self.progress.has_failed(request.model)
        deployment, is_news = await self.wishes.start(request, has_failed=failed)
        if is_news or self.reconciler.has_verdict(deployment.worker_key):
            self.reconciler.pardon(deployment.worker_key)
        return deployment, is_news

    async def model_shutdown(
        self, request: WorkerStartupRequest | WorkerShutdownRequest, *, wait: bool = True
    ) -> None:
        self.check_running()
        deployment = await self.shut(request)
        if wait:
            await self.until_gone(deployment.name, self.config.life.stop_limit_s)

    async def shut(self, request: WorkerStartupRequest | WorkerShutdownRequest) -> Deployment:
        """Write down that a model should stop; its instances drain. Asked again: they leave now."""
        forget = isinstance(request, WorkerShutdownRequest) and request.delete_after
        before = self.wishes.find(request.model, request.worker_type)
        check_own_name(before, request.model)
        if before.wish is Wish.STOPPED:
            self.machines.hands.hurry(before.worker_key)
        return await self.wishes.stop(request.model, request.worker_type, forget=forget)

    async def worker_apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        self.check_running()
        return await Applier(self).apply(request)

    async def until_ready(self, deployment: Deployment, timeout_s: float | None = None) -> None:
        """As `Waiting.until_ready`."""
        await self.waiting.until_ready(deployment, timeout_s)

    async def until_gone(self, model_name: str, timeout_s: float) -> None:
        """As `Waiting.until_gone`."""
        await self.waiting.until_gone(model_name, timeout_s)

    # Private

    async def _build(self) -> None:
        """Make the parts; nothing runs yet."""
        self.is_stopping = False
        self.writer = Writer("store")
        self.journal = Journal(self.store)
        self.usage = UsageBook(self.store)
        incarnation = await self.writer.do(self.store.next_incarnation)
        crash_point(CrashPoint.STARTED)
        self.journal.tell_start(incarnation)
        self.registry = Registry(
            self.config.heartbeat, self.clock, incarnation=incarnation, moved=self._moved
        )
        self.keys_changed()
        self.members = Members(self.store, self.writer, time.time)  # joined_at_s, expires_at_s
        self.wishes = Wishes(
            self.store,
            self.writer,
            self.catalog,
            self._wished,
            check_host=lambda name: self.machines.check_host(name),
        )
        self.servers = GivenServers(self.registry, self.config.gateway, clock=self.clock)
        files = ModelFiles(
            self.paths.models_dir, self.catalog, tell=self.journal.tell, clock=self.clock
        )
        book = LaunchBook(self.store, self.writer)
        self.workers = LocalWorkers(
            paths=self.paths,
            config=self.config,
            book=book,
            registry=self.registry,
            files=files,
            servers=self.servers,
            tell=self.journal.tell,
            clock=self.clock,
        )
        gateway = self.config.gateway
        router = Router(
            queue_length=gateway.queue_length,
            queue_wait_s=gateway.queue_wait_s,
            eject_s=gateway.eject_s,
            clock=self.clock,
        )
        self.following = FollowingRouter(self.registry, router)
        self.caller = Caller(self.following.now, gateway, lambda: self.machines.tls())
        self._build_plan(book, files)

    def _build_plan(self, book: LaunchBook, files: ModelFiles) -> None:
        """Make what leads to the wishes, and what waits for that."""
        self.room = Room(self.registry, files, self.workers.memory)
        self.machines = Machines(
            config=self.config,
            registry=self.registry,
            book=book,
            local=self.workers,
            room=self.room,
            catalog=self.catalog,
            wishes=self.wishes,
            members=self.members,
            tell=self.journal.tell,
            wake=lambda: self.reconciler.wake(),
            nudge=lambda: self.reconciler.nudge(),
            paths=self.paths,
            clock=self.clock,
        )
        hands, distant = self.machines.hands, self.machines.distant
        self.reconciler = Reconciler(
            has_room=hands.has_room,
            unheard=lambda: self.registry.unheard,
            leaving=lambda: distant.leaving,
            replacing=lambda: self.renewals.single.ids,
            pinned=lambda: distant.pinned,
            look_first=hands.look,
            wishes=lambda: () if self.is_stopping else self.wishes.all(),
            instances=lambda: self._ending() if self.is_stopping else self.registry.instances(),
            of_model=self._of_model,
            hands=hands,
            life=self.config.life,
            clock=self.clock,
        )
        self.progress = Progress(self.registry, self.reconciler, self.paths)
        self.waiting = Waiting(self.config.life, self.wishes, self.progress, files)
        self.renewals = Renewals(
            self.wishes, self.progress, self.journal.tell, lambda: distant.pinned
        )
        self.scaling = Autoscaler(
            wishes=self.wishes,
            registry=self.registry,
            own=lambda: demand_of(self.following.now()),
            has_crashed=self.reconciler.has_crashed,
            tell=self.journal.tell,
            clock=self.clock,
        )

    async def _run(self, up: asyncio.Future[None]) -> None:
        """Hold every part until asked to stop; in reverse order they end."""
        async with AsyncExitStack() as stack:
            stack.callback(self.paths.leave)
            for running in (self.journal.running, self.writer.running, self.usage.running):
                await stack.enter_async_context(running())
            await asyncio.to_thread(sweep, self.paths.models_dir)  # what a killed fetch left
            for one in (self.registry, self.workers, self.servers, self.machines):
                await stack.enter_async_context(one.running())
            opinion = SecondOpinion(
                self.registry,
                self.config,
                self.paths.agent_socket,
                clock=self.clock,
                tls=self.machines.tls,
            )
            await stack.enter_async_context(opinion.running())
            if self._declare:
                await self.wishes.declare(self._declared)
            self._wished(self.servers.places(self.wishes.all()))
            # Only now may gateways look: what they see from the first moment is whole.
            self.registry_server = RegistryServer(
                self.registry,
                self.paths.registry_socket,
                self.usage.take,
                self.scaling.take,
                LoadSum(
                    self.clock, self.machines.silence.ask_gateways, self.machines.silence.vouch
                ),
            )
            self.machines.watching = self.registry_server.is_watching
            for part in (self.registry_server, self.reconciler, self.renewals, self.scaling):
                await stack.enter_async_context(part.running())
            stack.push_async_callback(self.caller.close)
            port = await stack.enter_async_context(control_port(self.config, self, *self._control))
            self.control_port = port
            await stack.enter_async_context(
                ray_places(self.config, self, port.url, port.fingerprint)
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            follow = begin(tasks, Background.ROUTER, self.following.run())
            up.set_result(None)
            try:
                await self._stop_asked.wait()
            finally:
                follow.cancel()

    def _moved(self, before: Instance, after: Instance) -> None:
        """Every change of a state passes here, once."""
        self.journal.tell_move(before, after)
        went_away = self.machines.has_gone(after.instance_id)
        is_pinned = after.instance_id in self.machines.distant.pinned
        self.machines.hands.moved(after)
        if after.state is State.FAILED and went_away:
            self.reconciler.defer(after, self.config.heartbeat.replace_after_s)
        elif after.state is State.FAILED and not is_pinned:
            final = is_hopeless(self.registry.record(after.instance_id))
            crashes = self.reconciler.crashed(after, final=final)
            if crashes.verdict:
                self.journal.tell(given_up(after, len(crashes.at_s), self.paths))
        self.renewals.moved(after)
        self.reconciler.stir(after.model_name)

    def _wished(self, given: Sequence[str] = ()) -> None:
        self.registry.describe(self.wishes.views(), given=given)
        self.renewals.look()
        self.reconciler.nudge()

    def _of_model(self, name: str) -> list[Instance]:
        if self.is_stopping:
            return [one for one in self._ending() if one.model_name == name]
        return [record.instance for record in self.registry.of_model(name)]

    def _ending(self) -> list[Instance]:
        """What ends with us: not what runs elsewhere, if the next manager on our store knows of it."""
        return self.machines.hands.here() if self.is_lasting else self.registry.instances()

    async def _drain_all(self) -> None:
        self.reconciler.wake()
        try:
            limit_s = self.config.life.stop_limit_s
            await self.waiting.until_gone(None, limit_s, among=self._ending)
        except UpstreamTimeout:
            await self.workers.hasten()
            raise
