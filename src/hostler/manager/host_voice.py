"""Voice: what a host says of itself and its instances, a beat at a time. It sends nothing."""

import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from hostler.core.hosts import (
    EVENTS_PER_BEAT,
    HostBeat,
    HostBeatAnswer,
    HostFacts,
    InstanceReport,
    OfferAnswer,
)
from hostler.core.snapshot import PROTOCOL
from hostler.core.worker import OperatorEvent
from hostler.manager.host_rules import has_changed
from hostler.manager.workers import LocalWorkers
from hostler.registry.record import Record


class Voice:
    """Makes beats, and remembers what its controller has been told in full."""

    def __init__(
        self,
        host_id: str,
        run_id: str,
        *,
        records: Callable[[], Iterable[Record]],
        facts: Callable[[], HostFacts],
        rank: Callable[[], tuple[int, int]],
        workers: LocalWorkers,
    ) -> None:
        """rank: incarnation and version of the orders that are obeyed."""
        self.is_draining = False
        self.address = ""
        self.port = 0
        self.names: Mapping[
            str, OfferAnswer
        ] = {}  # what its controller calls an instance, where it differs
        self.only_named = False  # of the others nothing is told
        self._host_id = host_id
        self._run_id = run_id
        self._records = records
        self._facts = facts
        self._rank = rank
        self._workers = workers
        self._seq = 0
        self._told_facts: HostFacts | None = None
        self._told: dict[str, tuple[object, ...]] = {}  # of each, what was told last
        self._events: dict[tuple[str, str], OperatorEvent] = {}

    def tell(self, event: OperatorEvent) -> None:
        """Say it with the next beat: of each kind the newest of an instance, and so many at most."""
        self._events.pop(key := (event.kind, event.instance_id), None)
        self._events[key] = msgspec.structs.replace(event, at_s=time.time())
        while len(self._events) > EVENTS_PER_BEAT:
            del self._events[next(iter(self._events))]

    def beat(self) -> HostBeat:
        """Return the next beat. Nothing counts as told before `heard`."""
        self._seq += 1
        incarnation, version = self._rank()
        facts = self._facts()
        return HostBeat(
            protocol=PROTOCOL,
            host_id=self._host_id,
            run_id=self._run_id,
            seq=self._seq,
            incarnation=incarnation,
            version=version,
            draining=self.is_draining,
            facts=facts if has_changed(self._told_facts, facts) else None,
            address=self.address,
            port=self.port,
            instances=self.reports(),
            events=tuple(map(self._named, self._events.values())),
        )

    def reports(self, *, whole: bool = False) -> tuple[InstanceReport, ...]:
        """How each instance is. whole: with all that was told before."""
        return tuple(
            self._report(record, whole=whole)
            for record in self._records()
            if not self.only_named or record.instance.instance_id in self.names
        )

    def heard(self, beat: HostBeat, answer: HostBeatAnswer) -> bool:
        """Note what of a beat has arrived, and what is asked for again; return whether anything is."""
        if beat.facts is not None:
            self._told_facts = beat.facts
        if answer.facts_wanted:
            self._told_facts = None
        for key, event in list(self._events.items()):
            if self._named(event) in beat.events:
                del self._events[key]
        here = {report.instance_id for report in beat.instances}
        self._told = {one: report for one, report in self._told.items() if one in here}
        for report in beat.instances:
            if report.metadata is not None:
                self._told[report.instance_id] = _lasting(report)
        again = [self._told.pop(one, None) for one in answer.wanted]
        return answer.facts_wanted or any(again)

    def forget(self) -> None:
        """Say everything again: who listens now may be another one."""
        self._told.clear()
        self._told_facts = None

    # Private

    def _report(self, record: Record, *, whole: bool) -> InstanceReport:
        one = record.instance
        name = self.names.get(one.instance_id)
        heard_s, well_s = record.heard_at_s, record.well_at_s
        report = InstanceReport(
            instance_id=name.instance_id if name else one.instance_id,
            epoch=name.epoch if name else one.epoch,
            state=one.state,
            reason=one.reason,
            error_code=record.error_code,
            pid=record.pid or self._workers.pid(one.instance_id),
            metadata=record.metadata,
            upstream_model=record.expected.upstream_model,
            command_args=self._workers.command_args(one.instance_id),
            concurrency=record.expected.concurrency,
            in_flight=record.in_flight,
            memory_bytes=record.memory_bytes,
            engine_ok=heard_s is None or well_s is None or heard_s <= well_s,
        )
        if not whole and self._told.get(report.instance_id) == _lasting(report):
            return msgspec.structs.replace(report, metadata=None, command_args=())
        return report

    def _named(self, event: OperatorEvent) -> OperatorEvent:
        name = self.names.get(event.instance_id)
        if name is None:
            return event
        return msgspec.structs.replace(event, instance_id=name.instance_id)


# Private


def _lasting(report: InstanceReport) -> tuple[object, ...]:
    """What of a report is told once: it changes seldom, and is large."""
    return (
        report.epoch,
        report.metadata,
        report.upstream_model,
        report.command_args,
        report.concurrency,
    )
