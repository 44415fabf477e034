"""LocalWorkers: a manager's hands on its own machine: starts processes, sees their end, ends them.

It decides nothing: the plan orders, the registry is told what came of it.
"""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, sweep, wait_exit
from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment
from hostler.core.errors import HostlerError
from hostler.core.launch import Launch
from hostler.core.lifecycle import Instance, Signal, State
from hostler.core.placing import Held
from hostler.manager.ending import ANNOUNCE_S, drain_out, end_now, hurry_out
from hostler.manager.files import ModelFiles, Tell
from hostler.manager.launches import LaunchBook, expected_of, is_of
from hostler.manager.launching import agent_answers, intent, specify, start_process, worker_argv
from hostler.manager.logs import LogKeeper, error_told, exit_reason, last_lines
from hostler.manager.memory import Memory
from hostler.manager.servers import GivenServers
from hostler.manager.telling import Telling
from hostler.registry.expected import Expected
from hostler.registry.record import Record
from hostler.registry.registry import Registry

log = logger(__name__)

INSTANCE_TAG = "HOSTLER_INSTANCE"
STATE_TAG = "HOSTLER_STATE_DIR"
ROLE_TAG = "HOSTLER_ROLE"
# Faults of the wish itself: the same start again ends the same.
HOPELESS = frozenset({"model_corrupt", "identity_mismatch", "invalid_value", "model_not_found"})
_LOOK_EVERY_S = 1.0  # at a process that runs; its end is told at once
SAME_ORDER_S = 1.0  # two stops within this are one order that arrived twice
_SETTLE_S = 5.0  # adopted workers speak within this, or are judged like any other


class LocalWorkers:
    """Worker processes as children of this one, or adopted from the one before it."""

    def __init__(
        self,
        *,
        paths: StatePaths,
        config: Config,
        book: LaunchBook,
        registry: Registry,
        files: ModelFiles,
        servers: GivenServers | None = None,
        tell: Tell,
        clock: Callable[[], float],
        announce_s: float = ANNOUNCE_S,
        memory_bytes: int | None = None,
        held: Callable[[str], Held] = lambda instance_id: Held(),
    ) -> None:
        """Start and adopt nothing yet.

        servers: those given by URL; None: there are none. tell: takes progress events.
        announce_s: from the news that one drains to its signal. memory_bytes: for all together.
        held: what a placer has chosen for an instance.
        """
        self._paths = paths
        self._folder = str(paths.state_dir)
        self._config = config
        self._book = book
        self._registry = registry
        self._files = files
        self._servers = servers
        self._tell = tell
        self._clock = clock
        self._tasks: asyncio.TaskGroup | None = None
        self._handles: dict[str, ProcessHandle] = {}
        self._announce_s = announce_s
        self._held = held
        self.memory = Memory(config.life, self.pid, most_bytes=memory_bytes)
        self._launches: dict[str, Launch] = {}
        self._logs = LogKeeper(paths.logs_dir)
        self._lives: dict[str, asyncio.Task[None]] = {}

    # What the plan orders

    def launch(
        self, deployment: Deployment, replica: int, instance: Instance | None = None
    ) -> None:
        """Begin the life of a new instance: fetch its files, start its process, watch it.

        instance: as somebody else has named and numbered it.
        """
        instance = instance or Instance(
            instance_id=secrets.token_hex(6),
            worker_key=deployment.worker_key,
            model_name=deployment.name,
            replica=replica,
            epoch=0,  # counted in the store, before there is a process
            generation=deployment.process_generation,
            since_s=self._clock(),
        )
        expected = Expected(
            worker_type=deployment.worker_type,
            engine=deployment.engine,
            concurrency=deployment.concurrency,
        )
        if deployment.urls and self._servers is not None:
            expected = self._servers.expected(deployment, replica)
        self._registry.add(instance, expected)
        self.begin(instance, expected, deployment)

    def begin(self, instance: Instance, expected: Expected, deployment: Deployment) -> None:
        """Bring an instance that waits in the registry to life."""
        life = self._bring_up(instance, expected, deployment)
        self._begin(instance.instance_id, "life", life)

    def drain(self, instance_id: str, reason: str, *, now: bool = False) -> None:
        """Let an instance finish, then end it; `now`: whatever it has, also when it drains already."""
        record, handle = self._registry.record(instance_id), self._handles.get(instance_id)
        if record is None:
            return
        moved: Instance | None = record.instance
        if not (now and record.instance.state is State.DRAINING):
            moved = self._registry.post(instance_id, Signal.DRAIN, reason)
        if moved is None:
            return
        if moved.state is State.STOPPED:  # it had no process yet
            if (life := self._lives.get(instance_id)) is not None:
                life.cancel()
            return
        if handle is None:
            self._registry.post(instance_id, Signal.DRAINED, reason)
            return
        crash_point(CrashPoint.DRAIN_POSTED)
        if now:
            ending = end_now(handle, self._config.life)
        else:
            telling = Telling(moved, self._tell, self._clock)
            ending = drain_out(
                handle, record, self._config.life, telling, self._clock, self._announce_s
            )
        self._begin(instance_id, "end", ending)

    # Looks

    def command_args(self, instance_id: str) -> tuple[str, ...]:
        launch = self._launches.get(instance_id)
        return tuple(worker_argv(self._paths, launch.spec)) if launch else ()

    def pid(self, instance_id: str) -> int | None:
        handle = self._handles.get(instance_id)
        return handle.pid if handle else None

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Adopt what still runs, then carry out orders until the block ends. Ends no process."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._adopt()
            known = self._registry.records
            keeping = self._logs.keep(lambda: {r.instance.instance_id for r in known()})
            trimming = begin(tasks, Background.LOGS, keeping)
            settling = tasks.create_task(self._settle(), name="settle")
            try:
                yield
            finally:
                for task in (trimming, settling, *self._lives.values()):
                    task.cancel()

    async def hasten(self) -> None:
        """End every process at once."""
        for handle in list(self._handles.values()):
            handle.kill()

    def hurry(self, worker_key: str) -> None:
        """End what still drains of a model. An order that only arrived twice changes nothing."""
        for record in self._registry.records():
            one = record.instance
            if one.worker_key != worker_key or one.state is not State.DRAINING:
                continue
            handle = self._handles.get(one.instance_id)
            if handle is not None and self._clock() - one.since_s > SAME_ORDER_S:
                self._begin(one.instance_id, "hurry", hurry_out(handle, self._config.life))

    # Private: one life

    async def _bring_up(
        self, instance: Instance, expected: Expected, deployment: Deployment
    ) -> None:
        instance_id = instance.instance_id
        try:
            epoch = instance.epoch or await self._book.next_epoch(
                instance.worker_key, instance.replica
            )
            self._registry.expect(instance_id, expected, epoch=epoch)
            if deployment.urls:  # a server that runs already
                self._registry.post(instance_id, Signal.LAUNCH)
                return
            path = await self._files.provide(
                deployment, instance_id, lambda: self._registry.post(instance_id, Signal.FETCH)
            )
            instance = msgspec.structs.replace(instance, epoch=epoch)
            launch = await self._start(instance, deployment, path)
        except (HostlerError, OSError) as error:
            code = error.code if isinstance(error, HostlerError) else "startup_error"
            await self._give_up(instance_id, str(error), code)
            return
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._book.write_pid(launch), name=f"pid.{instance_id}")
            await self._watch(launch, self._handles[instance_id])
            writing.cancel()

    async def _start(self, instance: Instance, deployment: Deployment, path: Path | None) -> Launch:
        """Write the intent down, then start the process."""
        instance_id = instance.instance_id
        spec = specify(
            instance, deployment, path, self._paths, self._config, self._held(instance_id)
        )
        self.memory.claim(spec)
        launch = intent(instance, spec)
        await self._book.intend(launch)
        self._registry.expect(instance_id, expected_of(launch), epoch=instance.epoch)
        tags = {INSTANCE_TAG: instance_id, STATE_TAG: self._folder, ROLE_TAG: "worker"}
        self._handles[instance_id] = handle = start_process(self._paths, spec, tags)
        crash_point(CrashPoint.SPAWNED)
        launch = msgspec.structs.replace(
            launch, pid=handle.pid, pid_start_ticks=handle.start_ticks, boot_id=handle.boot_id
        )
        self._launches[instance_id] = launch
        self._registry.post(instance_id, Signal.LAUNCH)
        crash_point(CrashPoint.LAUNCH_POSTED)
        return launch

    async def _watch(self, launch: Launch, handle: ProcessHandle) -> None:
        """Wait for the process to end; say why; leave nothing of it behind."""
        instance_id, deadline_s = launch.instance_id, launch.spec.start_timeout_s
        began_s = self._clock()
        record = self._registry.record(instance_id)
        telling = Telling(record.instance, self._tell, self._clock) if record else None
        while True:
            code = await wait_exit(handle, timeout_s=_LOOK_EVERY_S)
            if not handle.alive():
                code = handle.reap() if code is None else code
                lines = last_lines(self._paths.worker_log(instance_id))
                reason, error_code = exit_reason(code, lines), (error_told(lines) or ("", ""))[0]
                break
            record = self._registry.record(instance_id)
            if record is None or record.instance.state is not State.STARTING:
                telling = None
            elif self._clock() - began_s > deadline_s:
                handle.kill()
                await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
                reason, error_code = f"it was not ready after {deadline_s:g} s", "start_timeout"
                break
            elif telling is not None:
                telling.loading(handle.pid, deadline_s)
        crash_point(CrashPoint.EXIT_SEEN)
        record = self._registry.record(instance_id)
        if record is not None and record.instance.state is State.DRAINING:
            await self._clean(instance_id)  # stopped means that nothing of it is left
            self._registry.post(instance_id, Signal.DRAINED, record.instance.reason)
        else:
            self._failed(instance_id, reason, error_code)  # first: no request goes there any more
            await self._clean(instance_id)

    def cut(self, instance_id: str) -> None:
        """End what is left of an instance that was given up: its place is for another one."""
        if (handle := self._handles.get(instance_id)) is not None:
            handle.kill()

    async def end_all(self) -> None:
        """See the last process out: whatever still runs after the drain is killed."""
        for instance_id, handle in list(self._handles.items()):
            await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
            handle.kill()
            await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
            await self._clean(instance_id)

    def _failed(self, instance_id: str, reason: str, code: str) -> None:
        if (record := self._registry.record(instance_id)) is not None:
            record.error_code = record.error_code or code
        self._registry.post(instance_id, Signal.EXITED, reason)

    async def _give_up(self, instance_id: str, reason: str, code: str) -> None:
        """End an instance that we cannot start or watch; the others' lives go on."""
        if (handle := self._handles.get(instance_id)) is not None:
            handle.kill()
        self._failed(instance_id, reason, code)
        await self._clean(instance_id)

    async def _clean(self, instance_id: str) -> None:
        """Leave nothing of an instance: processes, sockets, record of the launch. Never raises."""
        handle = self._handles.pop(instance_id, None)
        self._launches.pop(instance_id, None)
        await asyncio.to_thread(sweep, INSTANCE_TAG, instance_id, within=(STATE_TAG, self._folder))
        if handle is not None:  # killed or ended: nobody else would reap it
            await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
        crash_point(CrashPoint.EXIT_SWEPT)
        for path in (
            self._paths.engine_socket(instance_id),
            self._paths.agent_socket(instance_id),
            self._paths.worker_spec(instance_id),
        ):
            with suppress(OSError):
                path.unlink()
        shutil.rmtree(self._paths.slots_dir(instance_id), ignore_errors=True)
        crash_point(CrashPoint.EXIT_CLEANED)
        self._book.drop(instance_id)

    # Private: adoption

    def _adopt(self) -> None:
        """Take over every process of the controller before us; end what nobody wrote down."""
        gone: list[str] = []
        for launch in self._book.all():
            if launch.host_id:
                continue
            if not is_of(launch, self._paths):
                self._book.drop(launch.instance_id)
                continue
            handle = ProcessHandle.find(launch.pid, launch.pid_start_ticks, launch.boot_id)
            if handle is None:
                gone.append(launch.instance_id)
                continue
            instance = Instance(
                instance_id=launch.instance_id,
                worker_key=launch.worker_key,
                model_name=launch.spec.model_name,
                replica=launch.replica,
                epoch=launch.epoch,
                generation=launch.generation,
                since_s=self._clock(),
            )
            self._handles[launch.instance_id] = handle
            self._launches[launch.instance_id] = launch
            self.memory.adopt(launch.spec)
            self._registry.add(instance, expected_of(launch), adopted=True)
            self._registry.post(
                launch.instance_id, Signal.LAUNCH, "adopted: its process runs already"
            )
            self._begin(launch.instance_id, "life", self._watch(launch, handle))
            crash_point(CrashPoint.ADOPTING)
        crash_point(CrashPoint.ADOPTED)
        known = frozenset(self._launches)
        sweep(STATE_TAG, self._folder, having=INSTANCE_TAG, but_not=known)
        for instance_id in gone:
            self._begin(instance_id, "clean", self._clean(instance_id))

    async def _settle(self) -> None:
        """Wait for the adopted workers to speak; then for those that hang to be found out."""
        adopted = tuple(self._handles)
        await asyncio.sleep(_SETTLE_S)
        await self._registry.arrivals.all_came()  # a large fleet registers one after the other
        self._registry.settle()
        await asyncio.sleep(max(0.0, self._config.heartbeat.lost_after_s - _SETTLE_S))
        for instance_id in adopted:
            record, handle = self._registry.record(instance_id), self._handles.get(instance_id)
            if record is None or handle is None or record.heard_at_s is not None:
                continue
            if record.instance.state is State.STARTING and not await agent_answers(
                self._paths, instance_id
            ):
                log.warning("worker.hung", instance_id=instance_id)
                handle.kill()  # its watch says the rest

    # Private: parts

    async def _guarded(self, instance_id: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # boundary: one instance; the others' lives go on
            log.error("worker.unwatched", instance_id=instance_id, error=error)
            await self._give_up(instance_id, f"{type(error).__name__} in its manager", "internal")

    def _begin(self, instance_id: str, what: str, work: Coroutine[None, None, None]) -> None:
        """Do something about one instance beside everything else. A life can be called off."""
        if self._tasks is None:
            work.close()
            raise HostlerError("the workers of this manager are not running")
        guarded = self._guarded(instance_id, work)
        task = self._tasks.create_task(guarded, name=f"{what}.{instance_id}")
        if what == "life":
            self._lives[instance_id] = task
            task.add_done_callback(lambda _: self._lives.pop(instance_id, None))
            task.add_done_callback(lambda _: self.memory.release(instance_id))


def is_hopeless(record: Record | None) -> bool:
    """Whether an instance failed in a way that its replacement would fail, too."""
    return record is not None and record.error_code in HOPELESS
