"""The manager's pure core (plan, reconcile, registry) with processes that exist on paper only.

`Paper` is the machines: it starts and ends processes at once and remembers each of them, whatever the
registry believes. Nothing here waits, and time passes when a rule says so.
"""

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from hostler.app.config import HeartbeatConfig, LifeConfig
from hostler.core.deployment import Deployment
from hostler.core.errors import Conflict, StaleEpoch, UnknownInstance
from hostler.core.fleet import Beat, Departure, Registration
from hostler.core.lifecycle import Instance, Signal, State
from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.snapshot import Endpoint
from hostler.manager.plan import GONE
from hostler.manager.reconcile import Reconciler
from hostler.registry.expected import Expected
from hostler.registry.host_reports import gone
from hostler.registry.registry import Registry
from hostler.testing.clock import ManualClock

HERE, ELSEWHERE = "", ("b", "c")
Message = Registration | Beat | Departure
LIFE = LifeConfig(crash_limit=4)


@dataclass
class Process:
    """One process on paper. alive: it runs. heard_out: its controller told it to leave."""

    instance: Instance
    deployment: Deployment
    machine: str = HERE
    alive: bool = True
    hangs: bool = False
    loaded: bool = False
    ordered_out: bool = False
    beats: int = 0
    sent: list[Message] = field(default_factory=list)

    @property
    def secret(self) -> str:
        return f"secret of {self.instance.instance_id}"

    def message(self, message: Message) -> Message:
        self.sent.append(message)
        return message

    def registration(self) -> Message:
        return self.message(
            Registration(
                instance_id=self.instance.instance_id,
                epoch=self.instance.epoch,
                secret=self.secret,
                pid=1000 + self.instance.epoch,
                endpoint=Endpoint(socket=f"/run/{self.instance.instance_id}.sock"),
                metadata=ModelMetadata(model=self.instance.model_name),
                draining=self.ordered_out,
            )
        )

    def beat(self, *, engine_ok: bool) -> Message:
        self.beats += 1
        return self.message(
            Beat(
                instance_id=self.instance.instance_id,
                epoch=self.instance.epoch,
                secret=self.secret,
                seq=self.beats,
                draining=self.ordered_out,
                engine_ok=engine_ok,
            )
        )

    def departure(self) -> Message:
        return self.message(
            Departure(
                instance_id=self.instance.instance_id,
                epoch=self.instance.epoch,
                secret=self.secret,
                reason="its engine ended",
            )
        )


class Paper:
    """A machine and its controller, on paper. The hands of the reconciler."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.wishes: dict[str, Deployment] = {}
        self.processes: dict[str, Process] = {}
        self.epochs: Counter[tuple[str, int]] = Counter()
        self.incarnation = 0
        self.has_room = True
        self.emptied: set[str] = set()  # machines that an operator drains
        self.cut: set[str] = set()  # machines that are lost
        self.boot()

    def boot(self) -> None:
        """A new controller: it knows the wishes and adopts the processes that run."""
        self.incarnation += 1
        for process in self.processes.values():
            process.sent.clear()  # what was under way died with its connection
        self.registry = Registry(
            HeartbeatConfig(), self.clock, incarnation=self.incarnation, moved=self._moved
        )
        self.reconciler = Reconciler(
            wishes=lambda: tuple(self.wishes.values()),
            instances=self.registry.instances,
            hands=self,
            life=LIFE,
            clock=self.clock,
            has_room=lambda deployment: self.has_room,
            unheard=lambda: self.registry.unheard,
            leaving=self.leaving,
        )
        for process in self.living():
            if process.machine in self.cut:
                continue  # given up: nobody remembers that it was ordered
            fresh = msgspec.structs.replace(process.instance, state=State.PENDING)
            self.registry.add(fresh, expected(process), adopted=True)
            self.registry.post(fresh.instance_id, Signal.LAUNCH, "adopted")

    # What the plan orders

    def launch(self, deployment: Deployment, replica: int) -> None:
        place = (deployment.worker_key, replica)
        self.epochs[place] += 1
        instance = Instance(
            instance_id=f"{deployment.name}.{replica}.{self.epochs[place]}",
            worker_key=deployment.worker_key,
            model_name=deployment.name,
            replica=replica,
            epoch=self.epochs[place],
            generation=deployment.process_generation,
            since_s=self.clock(),
        )
        process = Process(instance, deployment, self.free_machine())
        self.processes[instance.instance_id] = process
        self.registry.add(instance, expected(process))
        self.registry.post(instance.instance_id, Signal.LAUNCH)

    def drain(self, instance_id: str, reason: str) -> None:
        if self.registry.post(instance_id, Signal.DRAIN, reason) is not None:
            self.processes[instance_id].ordered_out = True

    def forget(self, instance_id: str) -> None:
        self.registry.forget(instance_id)

    # Machines

    def free_machine(self) -> str:
        """The one with the fewest processes of those that may take one more."""
        able = {HERE, *ELSEWHERE} - self.emptied - self.cut
        busy = Counter(process.machine for process in self.living())
        return min(able, key=lambda one: (busy[one], one))

    def leaving(self) -> frozenset[str]:
        return frozenset(
            process.instance.instance_id
            for process in self.living()
            if process.machine in self.emptied
        )

    def lose(self, machine: str) -> None:
        """It has been silent for so long that what it has is given up; it serves on."""
        self.cut.add(machine)
        for process in self.living():
            record = self.registry.record(process.instance.instance_id)
            if process.machine == machine and record is not None:
                gone(self.registry, record, "its host has been silent")

    def find(self, machine: str) -> None:
        """It is back, and ends what its list does not name."""
        self.cut.discard(machine)
        for process in self.living():
            if process.machine == machine:
                process.alive = False

    # What processes do

    def living(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive]

    def deliver(self, message: Message) -> None:
        """Bring a message to the controller; a sender that is told to go, goes."""
        process = self.processes[message.instance_id]
        if process.machine in self.cut:
            return
        try:
            match message:
                case Registration():
                    self.registry.register(message)
                case Beat():
                    self.registry.beat(message)
                case Departure():
                    self.registry.depart(message)
        except (StaleEpoch, UnknownInstance, Conflict):
            if isinstance(message, Registration) and process.alive and not process.hangs:
                self.end(process)

    def end(self, process: Process) -> None:
        """It is gone, and its controller sees that by its pidfd."""
        process.alive = False
        record = self.registry.record(process.instance.instance_id)
        if record is None or process.machine in self.cut:
            return
        is_draining = record.instance.state is State.DRAINING
        signal = Signal.DRAINED if is_draining else Signal.EXITED
        self.registry.post(process.instance.instance_id, signal, "its process is gone")

    def settle(self, rounds: int = 60) -> None:
        """Let everybody do what he was told, until nothing moves any more."""
        for _ in range(rounds):
            self.reconciler.look()
            for process in self.living():
                if process.machine in self.cut:
                    continue
                record = self.registry.record(process.instance.instance_id)
                is_failed = record is None or record.instance.state is State.FAILED
                if process.ordered_out or is_failed:
                    self.end(process)  # after the drain's time even one that hangs
                elif not process.hangs:
                    self.deliver(process.registration())
                    process.loaded = True
                    self.deliver(process.beat(engine_ok=True))
            self.clock.advance(1.0)
            self.registry.judge()
        self.reconciler.look()

    # Private

    def _moved(self, before: Instance, after: Instance) -> None:
        process = self.processes[after.instance_id]
        if process.machine in self.cut:
            if after.state is State.FAILED:
                self.reconciler.defer(after, 0.0)
            return
        if after.state in GONE:
            process.alive = False  # killed: its place is another's
        if after.state is State.FAILED:
            self.reconciler.crashed(after, final=False)


def expected(process: Process) -> Expected:
    return Expected(
        worker_type=WorkerType.LLM,
        engine="fake",
        secret_hash=hashlib.sha256(process.secret.encode()).hexdigest(),
    )


def on_paper() -> Paper:
    """Return a new machine. A registry wants an event loop's primitives, and nothing of the loop."""

    async def make() -> Paper:
        return Paper()

    return asyncio.run(make())
