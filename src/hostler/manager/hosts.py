"""HostWorkers: a manager's hands on other machines. It orders by lists of what should be, and starts nothing.

What is ordered follows from launches and the registry alone, so a controller that restarts orders the same.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from hostler.app.faults import CrashPoint, crash_point
from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment
from hostler.core.errors import HostlerError
from hostler.core.fleet import WorkerSpec
from hostler.core.hosts import Order, OrderWish, Standing
from hostler.core.launch import Launch
from hostler.core.lifecycle import Instance, Signal, State
from hostler.core.model import WorkerType
from hostler.core.placing import Held
from hostler.core.snapshot import Endpoint
from hostler.manager.launches import LaunchBook
from hostler.manager.plan import GONE
from hostler.registry.expected import Expected
from hostler.registry.host import Host
from hostler.registry.host_reports import gone
from hostler.registry.hosts import HostBook
from hostler.registry.registry import Registry

log = logger(__name__)

_AWAY = frozenset({Standing.LOST, Standing.LEFT})


class HostWorkers:
    """The instances on other machines: written down, ordered, struck from the list."""

    def __init__(
        self,
        book: LaunchBook,
        registry: Registry,
        hosts: HostBook,
        clock: Callable[[], float],
    ) -> None:
        self._book = book
        self._registry = registry
        self._hosts = hosts
        self._clock = clock
        self._tasks: asyncio.TaskGroup | None = None
        self._launches: dict[str, dict[str, Launch]] = {}  # by host
        self._at: dict[str, str] = {}  # the host of each instance, from its placing on
        self._needs: dict[str, int] = {}  # memory that instances on their way will take
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._hurried: set[str] = set()
        self._pinned: set[str] = set()

    # Looks

    def host_id(self, instance_id: str) -> str:
        """Where an instance is; "" when it is on no other machine."""
        return self._at.get(instance_id, "")

    def launch(self, host_id: str, instance_id: str) -> Launch | None:
        """What is ordered from a host under this id; None: nothing is."""
        return self._launches.get(host_id, {}).get(instance_id)

    def held(self, instance_id: str) -> Held:
        """What was chosen for an instance when it was ordered."""
        launch = self.launch(self.host_id(instance_id), instance_id)
        return launch.spec.held if launch is not None else Held()

    def launches_on(self, host_id: str) -> list[Launch]:
        return list(self._launches.get(host_id, {}).values())

    def coming_bytes(self) -> Mapping[str, int]:
        """The memory that instances on their way to each host will take, as far as it is known."""
        coming: Counter[str] = Counter()
        for instance_id, need in self._needs.items():
            coming[self._at[instance_id]] += need
        return coming

    def counts(self) -> Mapping[str, int]:
        """How many instances each host has, those on their way included."""
        return Counter(self._at.values())

    @property
    def pinned(self) -> frozenset[str]:
        """The instances that were brought by hand."""
        return frozenset(self._pinned)

    @property
    def leaving(self) -> frozenset[str]:
        """The instances whose host is being drained."""
        return frozenset(
            launch.instance_id
            for host in self._hosts.hosts()
            if host.standing is Standing.DRAINING
            for launch in self._launches.get(host.host_id, {}).values()
            if not launch.pinned
        )

    # Orders

    def begin(
        self,
        instance: Instance,
        deployment: Deployment,
        host: Host,
        need_bytes: int | None,
        held: Held,
    ) -> None:
        """Bring an instance that waits in the registry to life on a host. held: for it, there."""
        self._expect(instance, deployment, host, need_bytes)
        if self._tasks is None:
            raise HostlerError("the hosts of this manager are not running")
        instance_id = instance.instance_id
        life = self._tasks.create_task(
            self._guarded(instance, deployment, host, held), name=f"order.{instance_id}"
        )
        self._lives[instance_id] = life
        life.add_done_callback(lambda _: self._lives.pop(instance_id, None))

    async def pin(self, instance: Instance, deployment: Deployment, host: Host) -> int:
        """Take in an instance that is brought by hand; return its epoch once it is ordered."""
        self._pinned.add(
            instance.instance_id
        )  # at once: the plan may look while it is written down
        self._expect(instance, deployment, host, None)
        return await self._order(instance, deployment, host, Held(), pinned=True)

    def drain(self, instance_id: str, reason: str) -> None:
        """Let an instance finish, then end it: its host is told by its list."""
        self._registry.post(instance_id, Signal.DRAIN, reason)

    def hurry(self, worker_key: str, since_s: float) -> None:
        """End what still drains of a model, and did so at this moment already."""
        for record in self._registry.records():
            one = record.instance
            is_meant = one.worker_key == worker_key and one.state is State.DRAINING
            if is_meant and one.since_s < since_s and one.instance_id in self._at:
                self._hurried.add(one.instance_id)
                self.refresh(self._at[one.instance_id])

    def moved(self, after: Instance) -> None:
        """A state has changed: what is gone is struck from its host's list."""
        host_id = self._at.get(after.instance_id)
        if host_id is None:
            return
        if after.state is State.READY:
            self._needs.pop(after.instance_id, None)  # what it takes is no longer free there
        if after.state not in GONE:
            if after.state is State.DRAINING:
                self.refresh(host_id)
            return
        del self._at[after.instance_id]
        self._hurried.discard(after.instance_id)
        self._pinned.discard(after.instance_id)
        self._needs.pop(after.instance_id, None)
        if (life := self._lives.get(after.instance_id)) is not None:
            life.cancel()
        if self._launches.get(host_id, {}).pop(after.instance_id, None) is not None:
            self.refresh(host_id)
            crash_point(CrashPoint.ORDER_STRUCK)
            self._book.drop(after.instance_id)

    def refresh(self, host_id: str) -> None:
        """Say anew what should be on a host."""
        if self._tasks is None:
            return  # launches are not read: an empty list would end everything there
        orders = []
        for launch in sorted(self.launches_on(host_id), key=lambda one: one.instance_id):
            record = self._registry.record(launch.instance_id)
            if record is not None and record.instance.state not in GONE:
                orders.append(self._as_order(launch, record.instance))
        self._hosts.order(host_id, orders)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Expect what was ordered before, and order while the block lasts. Ends nothing."""
        self._adopt()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for host in self._hosts.hosts():
                self.refresh(host.host_id)
            try:
                yield
            finally:
                self._tasks = None
                for life in self._lives.values():
                    life.cancel()

    # Private

    def _expect(
        self, instance: Instance, deployment: Deployment, host: Host, need_bytes: int | None
    ) -> None:
        self._at[instance.instance_id] = host.host_id
        if need_bytes is not None:
            self._needs[instance.instance_id] = need_bytes
        expected = _expected(
            deployment.worker_type,
            deployment.engine,
            deployment.concurrency,
            host.endpoint(instance.instance_id),
        )
        self._registry.expect(instance.instance_id, expected, epoch=0)

    async def _guarded(
        self, instance: Instance, deployment: Deployment, host: Host, held: Held
    ) -> None:
        try:
            await self._order(instance, deployment, host, held)
        except Exception as error:  # boundary: one instance; the others' lives go on
            log.error("host.not_ordered", instance_id=instance.instance_id, error=error)
            why = f"{type(error).__name__} in its manager"
            self._registry.post(instance.instance_id, Signal.EXITED, why)

    async def _order(
        self,
        instance: Instance,
        deployment: Deployment,
        host: Host,
        held: Held,
        *,
        pinned: bool = False,
    ) -> int:
        """Write the intent down, then let the host's list say it."""
        instance_id = instance.instance_id
        epoch = await self._book.next_epoch(instance.worker_key, instance.replica)
        launch = _intent(instance, epoch, deployment, host.host_id, held, pinned=pinned)
        await self._book.intend(launch)
        record = self._registry.record(instance_id)
        if record is None or record.instance.state in GONE:  # called off meanwhile
            self._book.drop(instance_id)
            return epoch
        self._registry.expect(instance_id, record.expected, epoch=epoch)
        self._launches.setdefault(host.host_id, {})[instance_id] = launch
        self.refresh(host.host_id)
        crash_point(CrashPoint.ORDERED)
        if host.standing in _AWAY or host.is_removed:
            gone(self._registry, record, f"its host {host.name} went away")
        return epoch

    def _as_order(self, launch: Launch, instance: Instance) -> Order:
        wish, reason = OrderWish.RUN, ""
        if instance.state is State.DRAINING:
            is_hurried = launch.instance_id in self._hurried
            wish, reason = OrderWish.END if is_hurried else OrderWish.DRAIN, instance.reason
        spec = launch.spec
        return Order(
            instance_id=launch.instance_id,
            epoch=launch.epoch,
            replica=launch.replica,
            generation=launch.generation,
            wish=wish,
            reason=reason,
            model_name=spec.model_name,
            worker_type=spec.worker_type,
            engine=spec.engine,
            source=launch.source,
            params=spec.params,
            concurrency=spec.concurrency,
            upstream_model=launch.upstream_model,
            held=spec.held,
        )

    def _adopt(self) -> None:
        """What was ordered from a host is expected of it again; it says how it is when it beats."""
        known = {host.host_id: host for host in self._hosts.hosts()}
        for launch in self._book.all():
            if not launch.host_id:
                continue
            host = known.get(launch.host_id)
            if host is None:
                self._book.drop(launch.instance_id)
                continue
            instance_id, spec = launch.instance_id, launch.spec
            instance = Instance(
                instance_id=instance_id,
                worker_key=launch.worker_key,
                model_name=spec.model_name,
                replica=launch.replica,
                epoch=launch.epoch,
                generation=launch.generation,
                since_s=self._clock(),
            )
            self._at[instance_id] = host.host_id
            if launch.pinned:
                self._pinned.add(instance_id)
            self._launches.setdefault(host.host_id, {})[instance_id] = launch
            expected = _expected(
                spec.worker_type, spec.engine, spec.concurrency, host.endpoint(instance_id)
            )
            self._registry.add(instance, expected, adopted=True)
            self._registry.post(instance_id, Signal.LAUNCH, f"ordered from {host.name} before")


# Private


def _expected(
    worker_type: WorkerType, engine: str, concurrency: int, endpoint: Endpoint
) -> Expected:
    return Expected(
        worker_type=worker_type, engine=engine, concurrency=concurrency, endpoint=endpoint
    )


def _intent(
    instance: Instance,
    epoch: int,
    deployment: Deployment,
    host_id: str,
    held: Held,
    *,
    pinned: bool,
) -> Launch:
    """Return the record of what is about to be ordered from a host."""
    spec = WorkerSpec(
        instance_id=instance.instance_id,
        epoch=epoch,
        secret="",
        model_name=deployment.name,
        worker_type=deployment.worker_type,
        engine=deployment.engine,
        params=deployment.params,
        concurrency=deployment.concurrency,
        engine_socket="",
        agent_socket="",
        registry_socket="",
        held=held,
    )
    return Launch(
        instance_id=instance.instance_id,
        worker_key=instance.worker_key,
        replica=instance.replica,
        epoch=epoch,
        generation=instance.generation,
        secret_hash="",
        spec=spec,
        started_at_s=time.time(),
        host_id=host_id,
        source=deployment.source,
        upstream_model=deployment.upstream_model,
        pinned=pinned,
    )
