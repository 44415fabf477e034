"""LocalWorkers: a manager's hands on its own machine: starts processes, sees their end, ends them.

It decides nothing: the plan orders, the registry is told what came of it.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.config import Config, child_environment
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, spawn, sweep, wait_exit
from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment
from hostler.core.errors import HostlerError
from hostler.core.fleet import WorkerSpec
from hostler.core.launch import Launch, order
from hostler.core.lifecycle import Instance, Signal, State
from hostler.engines.base import find_engine
from hostler.manager.files import ModelFiles
from hostler.manager.logs import LogKeeper, error_told, exit_reason, last_lines
from hostler.manager.servers import GivenServers
from hostler.registry.registry import Expected, Registry
from hostler.storage.store import Store

log = logger(__name__)

INSTANCE_TAG = "HOSTLER_INSTANCE"
STATE_TAG = "HOSTLER_STATE_DIR"
ROLE_TAG = "HOSTLER_ROLE"
ANNOUNCE_S = 0.15  # from "draining" in the snapshot to SIGTERM: gateways hear of it first
# Faults of the wish itself: the same start again ends the same.
HOPELESS = frozenset({"model_corrupt", "identity_mismatch", "invalid_value", "model_not_found"})
_SETTLE_S = 5.0  # adopted workers speak within this, or are judged like any other


class LocalWorkers:
    """Worker processes as children of this one, or adopted from the one before it."""

    def __init__(
        self,
        *,
        paths: StatePaths,
        config: Config,
        store: Store,
        registry: Registry,
        files: ModelFiles,
        servers: GivenServers,
        clock: Callable[[], float],
    ) -> None:
        self._paths = paths
        self._config = config
        self._store = store
        self._registry = registry
        self._files = files
        self._servers = servers
        self._clock = clock
        self._tasks: asyncio.TaskGroup | None = None
        self._handles: dict[str, ProcessHandle] = {}
        self._launches: dict[str, Launch] = {}
        self._logs = LogKeeper(paths.logs_dir)
        self._lives: dict[str, asyncio.Task[None]] = {}

    # What the plan orders

    def launch(self, deployment: Deployment, replica: int) -> None:
        """Begin the life of a new instance: fetch its files, start its process, watch it."""
        instance = Instance(
            instance_id=secrets.token_hex(6),
            worker_key=deployment.worker_key,
            model_name=deployment.name,
            replica=replica,
            epoch=self._store.next_epoch(deployment.worker_key, replica),
            generation=deployment.process_generation,
            since_s=self._clock(),
        )
        expected = Expected(
            worker_type=deployment.worker_type,
            engine=deployment.engine,
            concurrency=deployment.concurrency,
        )
        if deployment.urls:
            expected = self._servers.expected(deployment, replica)
        self._registry.add(instance, expected)
        if deployment.urls:
            self._registry.post(instance.instance_id, Signal.LAUNCH)
            return
        self._lives[instance.instance_id] = self._begin(
            self._bring_up(instance, deployment), f"life.{instance.instance_id}"
        )

    def drain(self, instance_id: str, reason: str) -> None:
        """Let an instance finish, then end it."""
        moved = self._registry.post(instance_id, Signal.DRAIN, reason)
        if moved is None:
            return
        if moved.state is State.STOPPED:  # it had no process yet
            if (life := self._lives.get(instance_id)) is not None:
                life.cancel()
        elif instance_id not in self._handles:
            self._registry.post(instance_id, Signal.DRAINED, reason)
        else:
            self._begin(self._end(instance_id), f"end.{instance_id}")

    def forget(self, instance_id: str) -> None:
        self._registry.forget(instance_id)

    # Looks

    def command_args(self, instance_id: str) -> tuple[str, ...]:
        return tuple(_argv(self._paths, instance_id)) if instance_id in self._launches else ()

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
            trimming = tasks.create_task(self._logs.keep(self._known), name="logs")
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

    # Private: one life

    async def _bring_up(self, instance: Instance, deployment: Deployment) -> None:
        instance_id = instance.instance_id
        try:
            path = await self._fetch(instance_id, deployment)
            launch = self._start(instance, deployment, path)
        except HostlerError as error:
            self._failed(instance_id, error.message, error.code)
            return
        await self._watch(launch, self._handles[instance_id])

    async def _fetch(self, instance_id: str, deployment: Deployment) -> Path | None:
        if not find_engine(deployment.engine).needs_files:
            return None
        if (present := self._files.present(deployment)) is None:
            self._registry.post(instance_id, Signal.FETCH)
            present = await self._files.fetch(instance_id, deployment)
        self._files.check(present, deployment)
        return present

    def _start(self, instance: Instance, deployment: Deployment, path: Path | None) -> Launch:
        """Write the intent down, start the process, write its pid down."""
        instance_id = instance.instance_id
        life = self._config.life
        spec = WorkerSpec(
            instance_id=instance_id,
            epoch=instance.epoch,
            secret=secrets.token_urlsafe(32),
            model_name=deployment.name,
            worker_type=deployment.worker_type,
            engine=deployment.engine,
            model_path=str(path or ""),
            params=deployment.params,
            concurrency=deployment.concurrency,
            engine_socket=str(self._paths.engine_socket(instance_id)),
            agent_socket=str(self._paths.agent_socket(instance_id)),
            registry_socket=str(self._paths.registry_socket),
            state_dir=str(self._paths.state_dir),
            orphan_grace_s=life.orphan_grace_s,
            drain_timeout_s=life.drain_timeout_s,
            start_timeout_s=life.start_timeout_s,
            log_json=self._config.log_json,
        )
        launch = order(
            spec,
            worker_key=instance.worker_key,
            replica=instance.replica,
            generation=instance.generation,
            started_at_s=time.time(),
        )
        self._store.save_launch(launch)
        self._registry.expect(instance_id, _expected(launch), epoch=instance.epoch)
        spec_path = self._paths.worker_spec(instance_id)
        spec_path.touch(mode=0o600)
        spec_path.write_bytes(msgspec.json.encode(spec))
        with self._paths.worker_log(instance_id).open("ab") as output:
            handle = spawn(
                _argv(self._paths, instance_id),
                env=child_environment(
                    {
                        INSTANCE_TAG: instance_id,
                        STATE_TAG: str(self._paths.state_dir),
                        ROLE_TAG: "worker",
                        # spinning OpenMP threads ruin neighbours (docs/design/engines.md)
                        "OMP_WAIT_POLICY": "passive",
                    }
                ),
                stdout=output.fileno(),
            )
        launch = msgspec.structs.replace(
            launch, pid=handle.pid, pid_start_ticks=handle.start_ticks, boot_id=handle.boot_id
        )
        self._handles[instance_id] = handle
        self._launches[instance_id] = launch
        self._store.save_launch(launch)
        self._registry.post(instance_id, Signal.LAUNCH)
        return launch

    async def _watch(self, launch: Launch, handle: ProcessHandle) -> None:
        """Wait for the process to end; say why; leave nothing of it behind."""
        instance_id = launch.instance_id
        deadline = asyncio.timeout(self._config.life.start_timeout_s)
        try:
            async with deadline:
                while True:
                    code = await wait_exit(handle, timeout_s=1.0)
                    if not handle.alive():
                        break
                    record = self._registry.record(instance_id)
                    if record is None or record.instance.state is not State.STARTING:
                        deadline.reschedule(None)
                    if record is None or record.instance.state is State.FAILED:
                        handle.kill()  # given up here: its process must not outlive that
            lines = last_lines(self._paths.worker_log(instance_id))
            reason, error_code = exit_reason(code, lines), (error_told(lines) or ("", ""))[0]
        except TimeoutError:
            handle.kill()
            await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
            seconds = self._config.life.start_timeout_s
            reason, error_code = f"it was not ready after {seconds:g} s", "start_timeout"
        self._clean(instance_id)
        record = self._registry.record(instance_id)
        if record is not None and record.instance.state is State.DRAINING:
            self._registry.post(instance_id, Signal.DRAINED, record.instance.reason)
        else:
            self._failed(instance_id, reason, error_code)

    def is_hopeless(self, instance_id: str) -> bool:
        """Whether an instance failed in a way that its replacement would fail, too."""
        record = self._registry.record(instance_id)
        return record is not None and record.error_code in HOPELESS

    async def end_all(self) -> None:
        """See the last process out: whatever still runs after the drain is killed."""
        for instance_id, handle in list(self._handles.items()):
            await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
            handle.kill()
            await wait_exit(handle, timeout_s=self._config.life.kill_grace_s)
            self._clean(instance_id)

    def _failed(self, instance_id: str, reason: str, code: str) -> None:
        if (record := self._registry.record(instance_id)) is not None:
            record.error_code = record.error_code or code
        self._registry.post(instance_id, Signal.EXITED, reason)

    async def _end(self, instance_id: str) -> None:
        """SIGTERM, the drain's time, SIGKILL."""
        life = self._config.life
        await asyncio.sleep(ANNOUNCE_S)
        if (handle := self._handles.get(instance_id)) is None:
            return
        handle.terminate()
        await wait_exit(handle, timeout_s=life.drain_timeout_s + life.kill_grace_s)
        if handle.alive():
            log.warning("worker.killed", instance_id=instance_id)
            handle.kill()

    def _clean(self, instance_id: str) -> None:
        self._handles.pop(instance_id, None)
        self._launches.pop(instance_id, None)
        self._lives.pop(instance_id, None)
        sweep(INSTANCE_TAG, instance_id)
        for path in (
            self._paths.engine_socket(instance_id),
            self._paths.agent_socket(instance_id),
            self._paths.worker_spec(instance_id),
        ):
            path.unlink(missing_ok=True)
        self._store.delete_launch(instance_id)

    # Private: adoption

    def _adopt(self) -> None:
        """Take over every process of the controller before us; end what nobody wrote down."""
        for launch in self._store.launches():
            handle = ProcessHandle.find(launch.pid, launch.pid_start_ticks, launch.boot_id)
            if handle is None:
                self._clean(launch.instance_id)
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
            self._registry.add(instance, _expected(launch), adopted=True)
            self._registry.post(
                launch.instance_id, Signal.LAUNCH, "adopted: its process runs already"
            )
            self._lives[launch.instance_id] = self._begin(
                self._watch(launch, handle), f"life.{launch.instance_id}"
            )
        known = frozenset(self._launches)
        sweep(STATE_TAG, str(self._paths.state_dir), having=INSTANCE_TAG, but_not=known)

    async def _settle(self) -> None:
        await asyncio.sleep(_SETTLE_S)
        self._registry.settle()

    # Private: parts

    def _known(self) -> frozenset[str]:
        return frozenset(record.instance.instance_id for record in self._registry.records())

    def _begin(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        if self._tasks is None:
            work.close()
            raise HostlerError("the workers of this manager are not running")
        return self._tasks.create_task(work, name=name)


# Private


def _expected(launch: Launch) -> Expected:
    return Expected(
        worker_type=launch.spec.worker_type,
        engine=launch.spec.engine,
        secret_hash=launch.secret_hash,
        concurrency=launch.spec.concurrency,
    )


def _argv(paths: StatePaths, instance_id: str) -> list[str]:
    return [sys.executable, "-m", "hostler", "worker", f"--spec={paths.worker_spec(instance_id)}"]
