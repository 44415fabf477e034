"""AllHands: the plan's hands over every machine: finds where an instance runs, and passes orders on.

What no machine can take now waits in the registry as pending, with the reason, and is tried again.
"""

import secrets
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from hostler.app.telemetry import logger
from hostler.catalog.catalog import Catalog
from hostler.core.deployment import HERE, Deployment
from hostler.core.errors import HostlerError
from hostler.core.hosts import Role
from hostler.core.lifecycle import Instance, Signal, State
from hostler.core.placing import Held, Seat
from hostler.core.worker import OperatorEvent
from hostler.manager.files import Tell
from hostler.manager.host_rules import HostRules, startable
from hostler.manager.hosts import HostWorkers
from hostler.manager.placement import Machine, Need, Unplaced
from hostler.manager.plan import GONE, Place
from hostler.manager.room import Room
from hostler.manager.workers import SAME_ORDER_S, LocalWorkers
from hostler.manager.yard import Yard
from hostler.registry.expected import Expected
from hostler.registry.host import Host
from hostler.registry.hosts import HostBook
from hostler.registry.registry import Registry

log = logger(__name__)

FAILED_KEPT = 4096  # places whose last failure is remembered
_NEEDS_KEPT = 1024
PASS_S = 0.1  # of placing in one pass: the event loop has others to serve


class Seats(Protocol):
    """Finds machines for instances in its own way; Ray does."""

    def seat(self, instance_id: str, deployment: Deployment) -> Seat | Unplaced:
        """Return the place for an instance, or what it waits for. Asked again until then."""

    def leave(self, instance_id: str) -> None:
        """The instance is gone."""

    def view(self, instance_id: str) -> str:
        """What it holds for an instance, and how that stands, for people."""

    def has_room(self, deployment: Deployment) -> bool:
        """Whether there is a machine for one instance more now."""


class SeatsToCome:
    """Where Ray is to find machines, and nobody asks it yet."""

    def seat(self, instance_id: str, deployment: Deployment) -> Seat | Unplaced:
        return Unplaced(reason="waits for Ray: it is not asked yet")

    def leave(self, instance_id: str) -> None:
        """It held nothing."""

    def view(self, instance_id: str) -> str:
        return ""

    def has_room(self, deployment: Deployment) -> bool:
        return True


class AllHands:
    """This machine's hands and those on hosts, as one."""

    def __init__(
        self,
        *,
        local: LocalWorkers,
        distant: HostWorkers,
        hosts: HostBook,
        registry: Registry,
        room: Room,
        catalog: Catalog,
        tell: Tell,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """tell: takes what waits for a machine, and why. wake: has the plan look again soon."""
        self._wake = wake
        self._local = local
        self._distant = distant
        self._hosts = hosts
        self._registry = registry
        self._room = room
        self._catalog = catalog
        self._tell = tell
        self._clock = clock
        self._engines: tuple[str, ...] | None = None
        self.seats: Seats | None = None  # who else finds machines
        self._known_bytes: dict[tuple[str, int], int] = {}  # by model and generation
        self._waiting: dict[str, Deployment] = {}
        self._failed_on: dict[Place, str] = {}  # where the last process of a place failed
        self._counts: dict[str, Counter[str]] = {}  # of this pass, see `_mine`
        self._was_on: dict[Place, str] = {}  # of this pass: the machine of each place's instance
        self._there: Yard | None = None  # of this pass, see `_find`
        self._until_s = clock() + PASS_S

    # What the plan orders

    def launch(self, deployment: Deployment, replica: int) -> None:
        """Begin the life of a new instance, here, elsewhere, or when there is a machine for it."""
        if deployment.urls or deployment.host == HERE or self._is_alone(deployment):
            self._local.launch(deployment, replica)
            return
        instance = Instance(
            instance_id=secrets.token_hex(6),
            worker_key=deployment.worker_key,
            model_name=deployment.name,
            replica=replica,
            epoch=0,  # counted in the store, once it has a machine
            generation=deployment.process_generation,
            since_s=self._clock(),
        )
        self._registry.add(instance, _expected(deployment))
        self._waiting[instance.instance_id] = deployment
        if self._clock() > self._until_s:
            self._wake()
        else:
            self._place(instance, deployment)

    def drain(self, instance_id: str, reason: str) -> None:
        """Let an instance finish, then end it."""
        if self._waiting.pop(instance_id, None) is not None:
            self._registry.post(instance_id, Signal.DRAIN, reason)
        elif self._distant.host_id(instance_id):
            self._distant.drain(instance_id, reason)
        else:
            self._local.drain(instance_id, reason)

    def fail(self, instance_id: str, reason: str) -> None:
        """An instance can have no machine: what it asked for cannot be."""
        self._waiting.pop(instance_id, None)
        self._registry.post(instance_id, Signal.EXITED, reason)

    def forget(self, instance_id: str) -> None:
        self._waiting.pop(instance_id, None)
        self._local.cut(instance_id)
        self._registry.forget(instance_id)

    def hurry(self, worker_key: str) -> None:
        """End what still drains of a model. An order that only arrived twice changes nothing."""
        self._local.hurry(worker_key)
        self._distant.hurry(worker_key, self._clock() - SAME_ORDER_S)

    # Looks

    def moved(self, after: Instance) -> None:
        """A state has changed. What was given up is ended: its place is for another one."""
        key = (after.worker_key, after.replica)
        if after.state is State.FAILED:
            if len(self._failed_on) >= FAILED_KEPT:
                self._failed_on.clear()
            self._failed_on[key] = self._distant.host_id(after.instance_id)
        elif after.state is State.READY:
            self._failed_on.pop(key, None)
        if after.state in GONE:
            self._local.cut(after.instance_id)
            if self.seats is not None:
                self.seats.leave(after.instance_id)
        self._distant.moved(after)

    @property
    def has_waiting(self) -> bool:
        """Whether anything waits for a machine."""
        return bool(self._waiting)

    def look(self) -> None:
        """Find a machine for what waits for one. A pass of the plan begins with it."""
        self._counts, self._was_on, self._there = {}, {}, None
        self._until_s = self._clock() + PASS_S
        for instance_id, deployment in list(self._waiting.items()):
            record = self._registry.record(instance_id)
            if record is None or record.instance.state is not State.PENDING:
                del self._waiting[instance_id]
            elif self._clock() > self._until_s:
                self._wake()  # so many that others would wait: the next pass goes on with these
                return
            else:
                self._waiting[instance_id] = self._waiting.pop(instance_id)
                self._place(record.instance, deployment)

    def placement(self, instance_id: str) -> str:
        """What another placer than ours holds for an instance, and how it sees that."""
        return self.seats.view(instance_id) if self.seats is not None else ""

    def here(self) -> list[Instance]:
        """The instances that are not on another machine."""
        at = self._distant.host_id
        return [one for one in self._registry.instances() if not at(one.instance_id)]

    def has_room(self, deployment: Deployment) -> bool:
        """Whether one process more of a model fits somewhere beside what runs."""
        if deployment.urls or deployment.host == HERE or self._is_alone(deployment):
            return self._room.has_room(deployment)
        if self.seats is not None and not deployment.host:
            return self.seats.has_room(deployment)
        return not isinstance(self._find(deployment, None, self._need(deployment)), Unplaced)

    # Private

    def _is_alone(self, deployment: Deployment) -> bool:
        """Whether there is no other machine, and none is asked for."""
        is_free = not deployment.host and not deployment.labels and self.seats is None
        is_free = is_free and not deployment.runtime_env
        return is_free and not any(host.role is Role.HOST for host in self._hosts.hosts())

    def _place(self, instance: Instance, deployment: Deployment) -> None:
        seat: Seat | Unplaced | None = None
        if self.seats is not None and not deployment.host:
            seat = self.seats.seat(instance.instance_id, deployment)
        elif deployment.runtime_env:
            seat = Unplaced(reason="waits for Ray (`hostler up --ray`): it has a runtime_env")
        if isinstance(seat, Unplaced):
            self._explain(instance, seat.reason)
            return
        need = self._need(deployment)
        if seat is not None:
            engine = "" if seat.held.python else need.engine  # its own environment has it
            need = msgspec.structs.replace(need, host=seat.host_id, labels={}, engine=engine)
        found = self._find(deployment, instance.replica, need)
        if isinstance(found, Unplaced):
            self._explain(instance, found.reason)
            return
        del self._waiting[instance.instance_id]
        self._note_placed(deployment, found.host_id, need.memory_bytes)
        if not found.host_id:
            self._local.begin(instance, _expected(deployment), deployment)
            return
        try:
            host = self._hosts.host(found.host_id)
            held = seat.held if seat is not None else Held()
            self._distant.begin(instance, deployment, host, need.memory_bytes, held)
        except HostlerError as error:
            self._registry.post(instance.instance_id, Signal.EXITED, error.message)

    def _note_placed(self, deployment: Deployment, host_id: str, need_bytes: int | None) -> None:
        """Whoever is placed next in this pass counts this one."""
        self._mine(deployment)[host_id] += 1
        if self._there is not None:
            self._there.note_placed(host_id, need_bytes or 0)

    def _explain(self, instance: Instance, reason: str) -> None:
        """Say why an instance is where it is; once for each reason."""
        if instance.reason == reason:
            return
        if (record := self._registry.record(instance.instance_id)) is not None:
            record.instance = msgspec.structs.replace(record.instance, reason=reason)
        self._tell(
            OperatorEvent(
                kind="instance.waits",
                model=instance.model_name,
                instance_id=instance.instance_id,
                message=reason,
                fields={"replica": instance.replica},
            )
        )

    def _engines_here(self) -> tuple[str, ...]:
        """Those that are installed here, looked for once."""
        if self._engines is None:
            self._engines = startable(HostRules())
        return self._engines

    def _need(self, deployment: Deployment) -> Need:
        key = (deployment.worker_key, deployment.process_generation)
        need_bytes = self._known_bytes.get(key)
        if need_bytes is None:
            need_bytes = self._room.need_bytes(deployment)  # reads the files' headers
        if need_bytes is not None:
            if len(self._known_bytes) >= _NEEDS_KEPT:
                self._known_bytes.clear()
            self._known_bytes[key] = need_bytes
        else:
            entry = self._catalog.find(deployment.name)
            is_same = entry is not None and entry.source == deployment.source
            need_bytes = entry.memory_bytes if entry is not None and is_same else None
        return Need(
            engine=deployment.engine,
            host=deployment.host,
            labels=deployment.labels,
            memory_bytes=need_bytes,
        )

    def _find(self, deployment: Deployment, replica: int | None, need: Need) -> Machine | Unplaced:
        """The machine for one more of a model: this one, or a host that takes orders.

        What is the same for every model is looked at once a pass: processes are counted for it here.
        """
        if self._there is None:
            coming, there = self._distant.coming_bytes(), self._distant.counts()
            here = Machine(engines=self._engines_here(), free_bytes=self._room.left_bytes())
            hosts = (host for host in self._hosts.hosts() if host.role is Role.HOST)
            far = (
                _machine(one, coming.get(one.host_id, 0), there.get(one.host_id, 0))
                for one in hosts
            )
            self._there = Yard((here, *far))
        mine = self._mine(deployment)
        failed_on = was_on = None
        if replica is not None:
            failed_on = self._failed_on.get((deployment.worker_key, replica))
            was_on = self._was_on.get((deployment.worker_key, replica))
        known = {}
        for host_id in (*mine, failed_on, was_on):
            if host_id is not None and (one := self._there.machine(host_id)) is not None:
                known[host_id] = msgspec.structs.replace(
                    one,
                    mine=mine[host_id] - (was_on == host_id),
                    was=was_on == host_id,
                    failed=int(failed_on == host_id),
                )
        return self._there.place(need, known)

    def _mine(self, deployment: Deployment) -> Counter[str]:
        """How many instances of a model are on their way or living on each machine, counted once a pass."""
        key = deployment.worker_key
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = Counter()
            for record in self._registry.of_model(deployment.name):
                one = record.instance
                is_there = one.state not in GONE and one.state is not State.DRAINING
                if is_there and one.worker_key == key and one.instance_id not in self._waiting:
                    host_id = self._distant.host_id(one.instance_id)
                    counts[host_id] += 1
                    self._was_on[key, one.replica] = host_id
        return counts


# Private


def _expected(deployment: Deployment) -> Expected:
    return Expected(
        worker_type=deployment.worker_type,
        engine=deployment.engine,
        concurrency=deployment.concurrency,
    )


def _machine(host: Host, coming_bytes: int, instances: int) -> Machine:
    return Machine(
        host_id=host.host_id,
        name=host.name,
        standing=host.standing,
        engines=host.facts.engines if host.facts.version else None,
        labels=host.facts.labels,
        free_bytes=host.facts.memory_free_bytes,
        coming_bytes=coming_bytes,
        instances=instances,
    )
