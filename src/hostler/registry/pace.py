"""Pace: how often a fleet may speak to its controller, and how silence is judged by what each was told."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from hostler.app.config import HeartbeatConfig

SUSPECT_AFTER = 2.5  # beats that did not come
_LATE_S = 2.0  # that one may come later than it was told
_BURST_S = 0.25  # of registrations that may come at once
HOSTS_TURNS = 0.8  # of the beats a second that may be: the rest is for what is late, or out of turn
_COMING_BACK = 0.25  # of them: first beats of hosts that come back
_STARTING = 0.1  # of the time that this takes: nobody comes before, their controller starts
FEW_S = 2.0  # a fleet that comes back over so long is none of many


class Paced(Protocol):
    """Who beats. due_s: when the next beat is. interval_s: told at the last one."""

    due_s: float
    interval_s: float


class Turns:
    """Gives each beat a time of its own, so that there are never more in a second than may be.

    The beat of one that has no turn, or whose turn is long over, comes when it likes. While such come one
    after the other, as after a restart, as many turns are left out; what came in one moment is over.
    """

    def __init__(
        self, heartbeat: HeartbeatConfig, clock: Callable[[], float], *, share: float = 1.0
    ) -> None:
        """share: of the beats a second that may be, those that come by turns."""
        self._heartbeat = heartbeat
        self._clock = clock
        self._gap_s = 1 / (share * heartbeat.most_per_s)
        self._round_s = 0.0
        self.count = 0
        self._last_s = clock()  # of all that were given
        self._left_s = 0.0  # until when turns are left out for those who came without one

    def expect(self, count: int, away: int) -> None:
        """So many share the turns; so many of them are away. One that is away will come without a turn, and
        take one then: it counts twice. Who is back before the others does not fill the room they will need.
        """
        self.count, self._round_s = count, (count + away) * self._gap_s

    def next_beat_s(self, who: Paced) -> float:
        """In how many seconds it should beat again. One that beats out of turn keeps its turn."""
        now_s, interval_s = self._clock(), max(self._heartbeat.interval_s, self._round_s)
        if who.due_s - now_s <= who.interval_s / 2:
            gap_s = self._gap_s
            self._left_s = max(self._left_s, now_s - _BURST_S)
            has_none = not who.due_s or who.due_s + who.interval_s < now_s
            if has_none and self._left_s + gap_s <= now_s:
                self._left_s += gap_s
                self._last_s += gap_s
            who.due_s = self._last_s = max(now_s + interval_s, self._last_s + gap_s)
        next_s = max(0.0, who.due_s - now_s)
        who.interval_s = max(self._heartbeat.interval_s, next_s)
        return next_s


class Arrivals:
    """Lets so many register in a second; whoever comes beyond that is told when to come again."""

    def __init__(self, heartbeat: HeartbeatConfig, clock: Callable[[], float]) -> None:
        self._gap_s = 1 / heartbeat.most_per_s
        self._clock = clock
        self._free_s = 0.0  # when the next one may come
        self._told_s: dict[str, float] = {}
        self._hosts_s = -_LATE_S  # when the hosts should be back, with what runs there

    def hosts_come(self, within_s: float) -> None:
        """Hosts that are away come back over so many seconds from now."""
        self._hosts_s = self._clock() + within_s

    async def all_came(self) -> None:
        """Wait until all that were told to come again should have done it, and the hosts."""
        while True:
            last_s = max(self._told_s.values(), default=-_LATE_S)
            left_s = max(last_s, self._hosts_s) + _LATE_S - self._clock()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)

    def wait_s(self, instance_id: str) -> float:
        """In how many seconds this one should come again; 0: it is let in now."""
        now_s = self._clock()
        told_s = self._told_s.get(instance_id)
        if told_s is None:
            self._free_s = max(self._free_s + self._gap_s, now_s - _BURST_S)
            told_s = self._free_s
        if told_s <= now_s + self._gap_s:
            self._told_s.pop(instance_id, None)
            return 0.0
        self._told_s[instance_id] = told_s
        return told_s - now_s

    def forget(self, instance_id: str) -> None:
        self._told_s.pop(instance_id, None)


def patience(told: HeartbeatConfig, interval_s: float) -> HeartbeatConfig:
    """The configured patience with one that was told to beat every `interval_s`."""
    if interval_s <= told.interval_s:
        return told
    suspect_s = suspect_after_s(told, interval_s)
    lost_s = max(told.lost_after_s, 2 * suspect_s)
    return msgspec.structs.replace(
        told,
        suspect_after_s=suspect_s,
        lost_after_s=lost_s,
        mass_lost_after_s=max(told.mass_lost_after_s, lost_s),
    )


def suspect_after_s(told: HeartbeatConfig, interval_s: float) -> float:
    """After how much silence one that was told to beat every `interval_s` is suspect."""
    if interval_s <= told.interval_s:
        return told.suspect_after_s
    return max(told.suspect_after_s, SUSPECT_AFTER * interval_s)


def usual_s(told: HeartbeatConfig, count: int) -> float:
    """How often one of so many hosts beats."""
    return max(told.interval_s, count / (HOSTS_TURNS * told.most_per_s))


def spread_s(told: HeartbeatConfig, count: int) -> float:
    """Over how many seconds so many hosts come back when their controller has been away."""
    return count / (_COMING_BACK * told.most_per_s)


def all_back_s(over_s: float) -> float:
    """After how many seconds the last of hosts that come back over `over_s` makes its first try."""
    return (1.0 + _STARTING) * over_s


def again_s(wait_s: float, over_s: float) -> float:
    """In how many seconds to try again. Many hosts do not come back as one: each costs its controller two
    handshakes and the moves of all its instances, and what is waited for too long is begun anew.
    """
    return wait_s * random.uniform(0.5, 1.0) + over_s * (_STARTING + random.random())
