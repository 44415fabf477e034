"""Silences: judges who has not been heard of, without looking at everybody four times a second.

Each one that is watched has one entry in a heap: when somebody should go and ask it if nothing is heard of
it until then. A beat moves no entry; it is looked at when its time comes. Who is late is looked at always.
"""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from hostler.app.config import HeartbeatConfig
from hostler.core.lifecycle import Signal
from hostler.registry.liveness import Mass, is_mass, judge_heartbeat, own_pause_s
from hostler.registry.pace import patience, suspect_after_s
from hostler.registry.record import Record

LOOK_EVERY_S = 0.25
EARLY = 0.6  # of the time after which silence makes a worker suspect: then it is asked

Post = Callable[[str, Signal, str], object]


class Silences:
    """Of all workers that registered and are alive."""

    def __init__(self, heartbeat: HeartbeatConfig, clock: Callable[[], float], post: Post) -> None:
        """post: applies a signal to an instance."""
        self._heartbeat = heartbeat
        self._clock = clock
        self._post = post
        self._watched: dict[str, Record] = {}
        self._due: list[tuple[float, str]] = []
        self._late: dict[str, Record] = {}
        self._mass = Mass("workers", "registry.mass_loss")

    def watch(self, record: Record) -> None:
        """It has registered."""
        instance_id = record.instance.instance_id
        if instance_id not in self._watched:
            self._watched[instance_id] = record
            heappush(self._due, (self._until_s(record, EARLY), instance_id))

    def forget(self, instance_id: str) -> None:
        """It is not alive any more."""
        self._watched.pop(instance_id, None)
        self._late.pop(instance_id, None)

    def judge(self, paused_s: float = 0.0) -> None:
        """Judge every worker's silence now. paused_s: how long nobody listened here."""
        now_s = self._clock()
        if paused_s:
            for record in self._watched.values():
                record.well_at_s = (record.well_at_s or 0.0) + paused_s
                record.heard_at_s = (record.heard_at_s or 0.0) + paused_s
        silent = {i: r for i, r in self._look(now_s).items() if self._until_s(r) <= now_s}
        told = {i for i, r in silent.items() if (r.heard_at_s or 0.0) > (r.well_at_s or 0.0)}
        watched = len(self._watched)
        most = is_mass(len(silent) - len(told), watched)
        in_mass = self._mass.look(most, watched, now_s, paused_s)
        for instance_id, record in silent.items():
            frozen = in_mass and instance_id not in told
            seconds = now_s - (record.well_at_s or 0.0)
            patient = patience(self._heartbeat, record.interval_s)
            counted_s = (
                seconds if instance_id in told else self._mass.counted_s(seconds, now_s, patient)
            )
            signal = judge_heartbeat(counted_s, patient, in_mass=frozen)
            why = "its engine has not answered" if instance_id in told else "silent"
            self._post(instance_id, signal, f"{why} for {seconds:.1f} s")

    def late(self) -> list[Record]:
        """Those of whom nothing was heard for so long, by whatever way, that somebody should go and ask."""
        now_s = self._clock()
        return [
            record
            for record in self._look(now_s).values()
            if now_s - (record.heard_at_s or 0.0) >= EARLY * self._patience_s(record)
        ]

    async def run(self) -> None:
        """Judge again and again."""
        looked_at_s = self._clock()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = self._clock()
            self.judge(own_pause_s(now_s - looked_at_s, LOOK_EVERY_S, self._heartbeat))
            looked_at_s = now_s

    # Private

    def _until_s(self, record: Record, share: float = 1.0) -> float:
        """When it has been silent for too long; for a share of that."""
        return (record.well_at_s or 0.0) + share * self._patience_s(record)

    def _patience_s(self, record: Record) -> float:
        return suspect_after_s(self._heartbeat, record.interval_s)

    def _look(self, now_s: float) -> dict[str, Record]:
        """Look at those who were late and those whose time has come; return who is late."""
        due, late = self._due, self._late
        for instance_id, record in list(late.items()):
            if self._until_s(record, EARLY) > now_s:  # it has been heard of
                del late[instance_id]
                heappush(due, (self._until_s(record, EARLY), instance_id))
        while due and due[0][0] <= now_s:
            _, instance_id = heappop(due)
            known = self._watched.get(instance_id)
            if known is None or instance_id in late:
                continue
            until_s = self._until_s(known, EARLY)
            if until_s > now_s:
                heappush(due, (until_s, instance_id))
            else:
                late[instance_id] = known
        if len(due) > 2 * len(self._watched) + 64:  # of those that were forgotten and came again
            self._due = [
                (self._until_s(r, EARLY), i) for i, r in self._watched.items() if i not in late
            ]
            heapify(self._due)
        return late
