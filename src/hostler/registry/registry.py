"""Registry: who is alive. The one writer of instance states; everybody else reads its snapshots.

Its state is soft: what it holds is rebuilt from launches and beats. It starts, stops and probes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import HeartbeatConfig
from hostler.app.telemetry import logger
from hostler.core.errors import Conflict
from hostler.core.fleet import Beat, BeatAnswer, Departure, Registration
from hostler.core.lifecycle import ALIVE, Event, Instance, Signal, State, advance
from hostler.core.model import ModelMetadata
from hostler.core.snapshot import Endpoint, KeyView, ModelView, Snapshot
from hostler.registry.doubts import ReportedDoubts
from hostler.registry.expected import Expected
from hostler.registry.pace import Arrivals, Turns
from hostler.registry.record import Record, authentic
from hostler.registry.silences import Silences
from hostler.registry.tally import Tallies
from hostler.registry.told import Told

log = logger(__name__)

GATHER_S = 0.005  # changes that follow one another so soon are told together

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
        self.incarnation = incarnation
        self._tallies = Tallies()
        self.told = Told(incarnation, self._tallies.view)
        self._records: dict[str, Record] = {}
        self._settling: set[str] = set()
        self.silences = Silences(heartbeat, clock, self.post)
        self._turns = Turns(heartbeat, clock)
        self.arrivals = Arrivals(heartbeat, clock)
        self._told_at_s = -GATHER_S
        self._news = asyncio.Event()

    # Reading

    def records(self) -> list[Record]:
        return list(self._records.values())

    def record(self, instance_id: str) -> Record | None:
        return self._records.get(instance_id)

    def instances(self) -> list[Instance]:
        return [record.instance for record in self._records.values()]

    def of_model(self, model_name: str) -> list[Record]:
        """The instances of one model, without a look at the others."""
        return self._tallies.records(model_name)

    @property
    def snapshot(self) -> Snapshot:
        """All that the data plane needs to know, as it is at this moment."""
        self.told.step()
        return self.told.picture.snapshot()

    @property
    def version(self) -> int:
        """That of `snapshot`."""
        self.told.step()
        return self.told.picture.version

    @property
    def unheard(self) -> frozenset[str]:
        """The adopted workers that have not said yet who they are, and were not given up."""
        return frozenset(self._settling)

    def news(self) -> asyncio.Event:
        """What is set at the next change."""
        return self._news

    async def changed(self, version: int) -> None:
        """Wait for something newer than `version`, and for who was here before to speak first.

        One change is told at once, many that follow one another together.
        """
        loop = asyncio.get_running_loop()
        while True:
            if not self._settling:
                if self.told.picture.version > max(0, version):
                    return
                if self.told.is_stirred:
                    wait_s = self._told_at_s + GATHER_S - loop.time()
                    if wait_s > 0:
                        await asyncio.sleep(wait_s)
                    self._told_at_s = loop.time()
                    self.told.step()
                    continue
            await self._news.wait()

    # Writing: what should be

    def describe(self, models: Sequence[ModelView], *, given: Iterable[str] = ()) -> None:
        """Take the models as the operator wishes them. Counts of states are filled in here.

        given: places that serve already: nobody is told anything before `settle` has named each.
        """
        self.told.describe(models)
        self._settling.update(given)
        self._stir()

    def set_keys(self, keys: Sequence[KeyView]) -> None:
        self.told.set_keys(keys)
        self._stir()

    def add(self, instance: Instance, expected: Expected, *, adopted: bool = False) -> None:
        """Expect an instance. adopted: its process runs already and will register again."""
        record = self._records[instance.instance_id] = Record(instance, expected)
        self._tallies.add(record)
        if adopted:
            self._settling.add(instance.instance_id)
        self._show(record)

    def expect(self, instance_id: str, expected: Expected, *, epoch: int) -> None:
        """Fill in what is known once the process is about to start."""
        record = self._records[instance_id]
        record.expected = expected
        record.instance = msgspec.structs.replace(record.instance, epoch=epoch)
        record.view = expected.view(record.instance)
        self._show(record)

    def forget(self, instance_id: str) -> None:
        record = self._records.pop(instance_id, None)
        if record is None:
            return
        self._tallies.remove(record)
        self._settling.discard(instance_id)
        self.silences.forget(instance_id)
        self.arrivals.forget(instance_id)
        self.told.show(instance_id, record.instance.model_name, None)
        self._stir()

    def settle(self, place: str | None = None) -> None:
        """Stop waiting for this one; for whatever has not spoken when none is named."""
        left = self._settling - {place} if place else set()
        if left != self._settling:
            self._settling = left
            self._stir()

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
                self.silences.forget(instance_id)
            self._tallies.move(after.model_name, before.state, after.state)
            self._moved(before, after)
            self._show(record)
        return after

    # Writing: what workers report

    def register(self, registration: Registration) -> BeatAnswer:
        """A worker has loaded. When too many come at once it is told to come again in a moment.

        Raises:
            UnknownInstance: not one we launched, or it is gone. StaleEpoch: a newer one replaced it.
        """
        record = authentic(self.record(registration.instance_id), registration)
        if record.pid not in (None, registration.pid):
            log.warning("registry.second_claim", instance_id=registration.instance_id)
            raise Conflict(
                f"instance {registration.instance_id!r} is process {record.pid}, not this sender"
            )
        if wait_s := self.arrivals.wait_s(registration.instance_id):
            return BeatAnswer(next_beat_s=wait_s, registered=False)
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
        self.silences.watch(record)
        return BeatAnswer(next_beat_s=self._turns.next_beat_s(record))

    def beat(self, beat: Beat) -> BeatAnswer:
        """A worker lives. A beat alone never makes an instance ready: only a registration does.

        Raises:
            UnknownInstance, StaleEpoch: as `register`.
        """
        record = authentic(self.record(beat.instance_id), beat)
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
        return BeatAnswer(next_beat_s=self._turns.next_beat_s(record))

    def depart(self, departure: Departure) -> None:
        """A worker leaves, by our order or because its engine is gone.

        Raises:
            UnknownInstance, StaleEpoch: as `register`.
        """
        record = authentic(self.record(departure.instance_id), departure)
        if record.instance.state is State.DRAINING:
            return  # its exit says the rest
        record.error_code = departure.code
        self.post(departure.instance_id, Signal.EXITED, departure.reason or "it left by itself")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Judge silence while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            watch = begin(tasks, Background.REGISTRY, self.silences.run())
            yield
            watch.cancel()

    # Private

    def _show(self, record: Record) -> None:
        """Something of an instance is other than before."""
        one = record.instance
        view = record.view if one.state in ALIVE else None
        self.told.show(one.instance_id, one.model_name, view)
        self._stir()

    def _stir(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def judge(self, paused_s: float = 0.0) -> None:
        """Judge every worker's silence now. paused_s: how long nobody listened here."""
        self.silences.judge(paused_s)


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
    registry._show(record)


def vouch(registry: Registry, instance_id: str, at_s: float) -> None:
    """Somebody asked the engine of an instance that is silent here, and it answered then (F23)."""
    record = registry.record(instance_id)
    if record is not None and record.well_at_s is not None:
        record.well_at_s = at_s
        registry.post(instance_id, Signal.SEEN)


# Private


def _drain(registry: Registry, record: Record) -> None:
    """It leaves, by whoever's order: nothing new goes there."""
    if record.instance.state in (State.STARTING, State.READY, State.SUSPECT):
        registry.post(record.instance.instance_id, Signal.DRAIN, "it leaves")
