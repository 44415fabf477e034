"""Registry: who is alive. The one writer of instance states; everybody else reads its snapshots.

Its state is soft: what it holds is rebuilt from launches and beats. It starts, stops and probes nothing.
"""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import HeartbeatConfig
from hostler.app.telemetry import logger
from hostler.core.errors import Conflict, StaleEpoch, UnknownInstance
from hostler.core.fleet import Beat, BeatAnswer, Departure, Registration
from hostler.core.lifecycle import ALIVE, Event, Instance, Signal, State, advance
from hostler.core.model import ModelMetadata
from hostler.core.snapshot import (
    PROTOCOL,
    Endpoint,
    KeyView,
    ModelView,
    Snapshot,
)
from hostler.registry.doubts import ReportedDoubts
from hostler.registry.expected import Expected
from hostler.registry.liveness import is_mass_loss, judge_heartbeat, own_pause_s

log = logger(__name__)

LOADING = frozenset({State.PENDING, State.FETCHING, State.STARTING})
_LOOK_EVERY_S = 0.25


class Record:
    """Everything known of one instance. Replaced states only through the registry."""

    __slots__ = ("beat_seq", "draining", "error_code", "expected", "heard_at_s", "in_flight", "instance",
                 "memory_bytes", "metadata", "pid", "view", "well_at_s")  # fmt: skip

    def __init__(self, instance: Instance, expected: Expected) -> None:
        self.instance = instance
        self.expected = expected
        self.metadata: ModelMetadata | None = None
        self.heard_at_s: float | None = None
        self.well_at_s: float | None = None  # heard, and its engine answers
        self.beat_seq = 0
        self.in_flight = 0
        self.memory_bytes: int | None = None
        self.pid: int | None = None
        self.draining = False
        self.error_code = ""  # of what ended it, if it said
        self.view = expected.view(instance)


Moved = Callable[[Instance, Instance], None]


class Registry:
    """The instances of one controller and the snapshot made of them."""

    def __init__(
        self,
        heartbeat: HeartbeatConfig,
        clock: Callable[[], float],
        *,
        incarnation: int = 0,
        moved: Moved | None = None,
    ) -> None:
        """Hold nothing yet. moved: called with (before, after) for every change of a state."""
        self._heartbeat = heartbeat
        self._clock = clock
        self._moved = moved or (lambda before, after: None)
        self.doubts = ReportedDoubts(clock)
        self._records: dict[str, Record] = {}
        self._models: tuple[ModelView, ...] = ()
        self._keys: tuple[KeyView, ...] = ()
        self._settling: set[str] = set()
        self._renewing: set[str] = set()  # models whose last ready instance was sent away
        self._in_mass = False
        self._news = asyncio.Event()
        self.snapshot = Snapshot(protocol=PROTOCOL, incarnation=incarnation)

    # Reading

    def records(self) -> list[Record]:
        return list(self._records.values())

    def record(self, instance_id: str) -> Record | None:
        return self._records.get(instance_id)

    def instances(self) -> list[Instance]:
        return [record.instance for record in self._records.values()]

    @property
    def unheard(self) -> frozenset[str]:
        """The adopted workers that have not said yet who they are, and were not given up."""
        return frozenset(self._settling)

    def news(self) -> asyncio.Event:
        """What is set at the next change."""
        return self._news

    async def changed(self, version: int) -> Snapshot:
        """Wait for a snapshot newer than `version`, and for who was here before to speak first."""
        while self.snapshot.version <= version or self._settling:
            await self._news.wait()
        return self.snapshot

    # Writing: what should be

    def describe(self, models: Sequence[ModelView], *, given: Iterable[str] = ()) -> None:
        """Take the models as the operator wishes them. Counts of states are filled in here.

        given: places that serve already: nobody is told anything before `settle` has named each.
        """
        self._models = tuple(models)
        self._settling.update(given)
        self._publish()

    def set_keys(self, keys: Sequence[KeyView]) -> None:
        self._keys = tuple(keys)
        self._publish()

    def add(self, instance: Instance, expected: Expected, *, adopted: bool = False) -> None:
        """Expect an instance. adopted: its process runs already and will register again."""
        self._records[instance.instance_id] = Record(instance, expected)
        if adopted:
            self._settling.add(instance.instance_id)
        self._publish()

    def expect(self, instance_id: str, expected: Expected, *, epoch: int) -> None:
        """Fill in what is known once the process is about to start."""
        record = self._records[instance_id]
        record.expected = expected
        record.instance = msgspec.structs.replace(record.instance, epoch=epoch)
        record.view = expected.view(record.instance)

    def forget(self, instance_id: str) -> None:
        if self._records.pop(instance_id, None) is not None:
            self._settling.discard(instance_id)
            self._publish()

    def settle(self, place: str | None = None) -> None:
        """Stop waiting for this one; for whatever has not spoken when none is named."""
        left = self._settling - {place} if place else set()
        if left != self._settling:
            self._settling = left
            self._publish()

    def post(self, instance_id: str, signal: Signal, reason: str = "") -> Instance | None:
        """Apply a signal to an instance of ours; None when it is not known (any more)."""
        record = self._records.get(instance_id)
        if record is None:
            return None
        before = record.instance
        after = advance(
            before,
            Event(
                instance_id=instance_id,
                epoch=before.epoch,
                signal=signal,
                at_s=self._clock(),
                reason=reason,
            ),
        )
        if after is not before:
            record.instance = after
            record.view = record.expected.view(after)
            if after.state not in ALIVE:
                self._settling.discard(instance_id)
            _note_renewal(after, self.instances(), self._renewing)
            self._moved(before, after)
            self._publish()
        return after

    # Writing: what workers report

    def register(self, registration: Registration) -> BeatAnswer:
        """A worker has loaded.

        Raises:
            UnknownInstance: not one we launched, or it is gone. StaleEpoch: a newer one replaced it.
        """
        record = _authentic(self.record(registration.instance_id), registration)
        if record.pid not in (None, registration.pid):
            log.warning("registry.second_claim", instance_id=registration.instance_id)
            raise Conflict(
                f"instance {registration.instance_id!r} is process {record.pid}, not this sender"
            )
        record.heard_at_s = record.well_at_s = self._clock()
        loaded(
            self,
            record,
            pid=registration.pid,
            metadata=registration.metadata,
            memory_bytes=registration.memory_bytes,
            endpoint=registration.endpoint,
            upstream_model=registration.upstream_model,
            draining=registration.draining,
        )
        return BeatAnswer(next_beat_s=self._heartbeat.interval_s)

    def beat(self, beat: Beat) -> BeatAnswer:
        """A worker lives. A beat alone never makes an instance ready: only a registration does.

        Raises:
            UnknownInstance, StaleEpoch: as `register`.
        """
        record = _authentic(self.record(beat.instance_id), beat)
        if record.metadata is None:
            return BeatAnswer(next_beat_s=0.0, registered=False)
        if beat.seq > record.beat_seq:
            record.beat_seq = beat.seq
            record.heard_at_s = self._clock()
            record.in_flight = beat.in_flight
            record.memory_bytes = beat.memory_bytes or record.memory_bytes
            record.draining = beat.draining
            if beat.draining:
                _drain(self, record)
            if beat.engine_ok:
                record.well_at_s = record.heard_at_s
                self.post(beat.instance_id, Signal.SEEN)
            else:
                self.post(beat.instance_id, Signal.LATE, "the engine does not answer its agent")
        return BeatAnswer(next_beat_s=self._heartbeat.interval_s)

    def depart(self, departure: Departure) -> None:
        """A worker leaves, by our order or because its engine is gone.

        Raises:
            UnknownInstance, StaleEpoch: as `register`.
        """
        record = _authentic(self.record(departure.instance_id), departure)
        if record.instance.state is State.DRAINING:
            return  # its exit says the rest
        record.error_code = departure.code
        self.post(departure.instance_id, Signal.EXITED, departure.reason or "it left by itself")

    def vouch(self, instance_id: str) -> None:
        """Somebody asked the engine of an instance that is silent here, and it answered (F23)."""
        record = self._records.get(instance_id)
        if record is not None and record.well_at_s is not None:
            record.well_at_s = self._clock()
            self.post(instance_id, Signal.SEEN)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Judge silence while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            watch = begin(tasks, Background.REGISTRY, self._judge())
            yield
            watch.cancel()

    # Private

    def _publish(self) -> None:
        states: dict[str, Counter[str]] = {}
        for record in self._records.values():
            counts = states.setdefault(record.instance.model_name, Counter())
            counts[record.instance.state.value] += 1
        self.snapshot = Snapshot(
            protocol=PROTOCOL,
            incarnation=self.snapshot.incarnation,
            version=self.snapshot.version + 1,
            models=tuple(
                msgspec.structs.replace(
                    _model_view(model, states.get(model.name, Counter()), self._records.values()),
                    renewing=model.wanted > 0 and model.name in self._renewing,
                )
                for model in self._models
            ),
            instances=tuple(
                record.view for record in self._records.values() if record.instance.state in ALIVE
            ),
            keys=self._keys,
        )
        self._news.set()
        self._news = asyncio.Event()

    async def _judge(self) -> None:
        looked_at_s = self._clock()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now_s = self._clock()
            self.judge(own_pause_s(now_s - looked_at_s, _LOOK_EVERY_S, self._heartbeat))
            looked_at_s = now_s

    def judge(self, paused_s: float = 0.0) -> None:
        """Judge every worker's silence now. paused_s: how long nobody listened here."""
        now_s = self._clock()
        unwell_s: dict[str, float] = {}
        told: set[str] = set()  # their own agents say that the engine does not answer
        for record in self._records.values():
            if record.well_at_s is None or record.heard_at_s is None:
                continue
            record.well_at_s += paused_s
            record.heard_at_s += paused_s
            if record.instance.state in ALIVE:
                unwell_s[record.instance.instance_id] = now_s - record.well_at_s
                if record.heard_at_s > record.well_at_s:
                    told.add(record.instance.instance_id)
        silent_s = [0.0 if i in told else seconds for i, seconds in unwell_s.items()]
        in_mass = is_mass_loss(silent_s, self._heartbeat)
        if in_mass is not self._in_mass:
            self._in_mass = in_mass
            log.warning("registry.mass_loss", is_on=in_mass, workers=len(unwell_s))
        for instance_id, seconds in unwell_s.items():
            frozen = in_mass and instance_id not in told
            signal = judge_heartbeat(seconds, self._heartbeat, in_mass=frozen)
            if signal is not Signal.SEEN or frozen:
                why = "its engine has not answered" if instance_id in told else "silent"
                self.post(instance_id, signal, f"{why} for {seconds:.1f} s")


def loaded(
    registry: Registry,
    record: Record,
    *,
    pid: int | None,
    metadata: ModelMetadata,
    memory_bytes: int | None,
    endpoint: Endpoint,
    upstream_model: str,
    draining: bool = False,
) -> None:
    """Believe that an instance has loaded; who says so has proven to be it, or its host."""
    instance_id = record.instance.instance_id
    record.pid, record.metadata, record.memory_bytes = pid, metadata, memory_bytes
    record.expected = msgspec.structs.replace(
        record.expected,
        endpoint=endpoint,
        upstream_model=upstream_model or record.instance.model_name,
        prefix_reach=metadata.prefix_reach,
    )
    record.view = record.expected.view(record.instance)
    registry._settling.discard(instance_id)
    if draining:
        _drain(registry, record)
    else:
        registry.post(instance_id, Signal.LOADED)
    registry._publish()


# Private


def _authentic(record: Record | None, message: Registration | Beat | Departure) -> Record:
    """Return the record of a message whose sender has proven to be that very instance."""
    instance_id = message.instance_id
    if record is None or not record.expected.secret_hash:
        raise UnknownInstance(f"instance {instance_id!r} is not expected by this controller")
    shown = hashlib.sha256(message.secret.encode()).hexdigest()
    if not hmac.compare_digest(shown, record.expected.secret_hash):
        raise Conflict(f"instance {instance_id!r}: this sender has not proven to be it")
    if message.epoch < record.instance.epoch:
        raise StaleEpoch(
            f"instance {instance_id!r}: epoch {message.epoch} was replaced by a newer process"
        )
    if record.instance.state in (State.FAILED, State.STOPPED):
        raise UnknownInstance(f"instance {instance_id!r} was given up here")
    return record


def _drain(registry: Registry, record: Record) -> None:
    """It leaves, by whoever's order: nothing new goes there."""
    if record.instance.state in (State.STARTING, State.READY, State.SUSPECT):
        registry.post(record.instance.instance_id, Signal.DRAIN, "it leaves")


def _note_renewal(after: Instance, instances: Iterable[Instance], renewing: set[str]) -> None:
    """Keep the set of models whose last ready instance went away for a new one."""
    name = after.model_name
    if after.state in (State.READY, State.FAILED):
        renewing.discard(name)
    elif after.state is State.DRAINING and not any(
        i.model_name == name and i.state is State.READY for i in instances
    ):
        renewing.add(name)


def _model_view(model: ModelView, counts: Counter[str], records: Iterable[Record]) -> ModelView:
    lengths = [
        record.metadata.context_length
        for record in records
        if record.metadata and record.instance.model_name == model.name
    ]
    return msgspec.structs.replace(
        model,
        states=tuple(sorted(counts.items())),
        loading=any(counts.get(state.value) for state in LOADING),
        context_length=lengths[0] if lengths else model.context_length,
    )
