"""HostBook: the hosts of one controller: who is alive, what was ordered, what each was heard to say.

As the registry's, its state is soft: hosts come from the store and from those who join, the rest from beats.
It places nothing and computes no orders (manager/hosts.py does); it speaks no HTTP (host_server.py does).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from math import inf

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import HeartbeatConfig
from hostler.app.telemetry import logger
from hostler.app.tokens import StoredHost
from hostler.core.errors import Conflict, NotFound
from hostler.core.hosts import (
    EVENTS_PER_BEAT,
    HostBeat,
    HostBeatAnswer,
    HostView,
    Order,
    Standing,
)
from hostler.core.lifecycle import Signal, State
from hostler.core.worker import OperatorEvent
from hostler.registry.host import Host
from hostler.registry.host_reports import gone, take_beat
from hostler.registry.liveness import Mass, is_mass_loss, judge_heartbeat, own_pause_s
from hostler.registry.pace import HOSTS_TURNS, Turns, all_back_s, patience, spread_s, usual_s
from hostler.registry.record import Record
from hostler.registry.registry import Registry

log = logger(__name__)

FIRST_S = 5.0  # a controller that has just started waits so long for its hosts before it counts
LOOK_EVERY_S = 0.25
GATEWAYS_ANSWER_S = 1.0  # whether they hear a host, once they were asked
_GONE = frozenset({State.FAILED, State.STOPPED})
_GIVEN_UP = frozenset({Standing.LOST, Standing.LEFT})
_UNHEARD = frozenset({Standing.UNKNOWN, Standing.SUSPECT, Standing.LOST, Standing.LEFT})
_SILENT = {Signal.LATE: Standing.SUSPECT, Signal.LOST: Standing.LOST, Signal.SEEN: Standing.ALIVE}


class HostBook:
    """Every host of a controller."""

    def __init__(
        self,
        registry: Registry,
        heartbeat: HeartbeatConfig,
        clock: Callable[[], float],
        *,
        tell: Callable[[OperatorEvent], None] = lambda event: None,
        moved: Callable[[Host], None] = lambda host: None,
        refused: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """tell: takes events for operators. moved: called when a host's standing or facts changed.

        refused: the gateways that no relay may serve, which hosts are told with their orders.
        """
        self._registry = registry
        self._heartbeat = heartbeat
        self._clock = clock
        self._tell = tell
        self._moved = moved
        self._refused = refused
        self._hosts: dict[str, Host] = {}
        self._turns = Turns(heartbeat, clock, share=HOSTS_TURNS)
        self._mass = Mass("hosts", "hosts.mass_loss")

    # Who there is

    def learn(self, stored: StoredHost) -> Host:
        """Know a host from now on: it joined, or it is in the store."""
        host = self._hosts.get(stored.host_id)
        if host is None:
            host = self._hosts[stored.host_id] = Host(stored.host_id, stored.role)
            host.heard_at_s = self._clock() + FIRST_S
            host.interval_s = usual_s(self._heartbeat, len(self._hosts))
        host.take(stored)
        self._moved(host)
        return host

    def drop(self, host_id: str) -> None:
        """Know a host no more; who hears its orders is told that it has none, last."""
        if (host := self._hosts.pop(host_id, None)) is None:
            return
        self._give_up(host, f"its host {host.name} was removed")
        host.is_removed = True
        host.number(self._registry.incarnation, (), self._refused())
        self._moved(host)

    def hosts(self) -> list[Host]:
        return list(self._hosts.values())

    def known(self, host_id: str) -> Host | None:
        return self._hosts.get(host_id)

    def host(self, host_id: str) -> Host:
        """Return one host.

        Raises:
            NotFound: it never joined here, or was removed.
        """
        found = self._hosts.get(host_id)
        if found is None:
            raise NotFound(
                f"host {host_id[:64]!r} is not known here; it never joined, or was removed"
            )
        return found

    def find(self, name: str) -> Host:
        """Return the host of this id, or the one of this name.

        Raises:
            NotFound: none. Conflict: several have this name.
        """
        if name in self._hosts:
            return self._hosts[name]
        named = [host for host in self._hosts.values() if host.name == name]
        if len(named) > 1:
            ids = ", ".join(sorted(host.host_id for host in named))
            raise Conflict(f"{len(named)} hosts are named {name!r}: say which by its id ({ids})")
        if not named:
            known = ", ".join(sorted(host.name for host in self._hosts.values())[:20]) or "none"
            raise NotFound(f"no host {name[:64]!r} has joined here (there are: {known})")
        return named[0]

    def set_draining(self, host_id: str, is_draining: bool) -> None:
        host = self.host(host_id)
        host.is_draining = is_draining
        self._moved(host)

    def view(self, host: Host) -> HostView:
        """The host, as operators see it."""
        records = [record for record in self._records(host) if record.instance.state not in _GONE]
        heard_s = max(0.0, self._clock() - host.heard_at_s) if host.is_heard else None
        return HostView(
            host_id=host.host_id,
            role=host.role,
            standing=host.standing,
            facts=host.facts,
            address=host.address,
            port=host.port,
            heard_s=heard_s,
            instances=len(records),
            in_flight=sum(record.in_flight for record in records),
            joined_at_s=host.joined_at_s,
        )

    # What each should do

    def order(self, host_id: str, orders: Sequence[Order]) -> None:
        """Say what should be on a host, the whole of it. The same again changes nothing."""
        host, said = self._hosts.get(host_id), (tuple(orders), self._refused())
        if host is None:
            return
        if host.orders is None or (host.orders.orders, host.orders.refused) != said:
            host.number(self._registry.incarnation, *said)

    # What each says

    def beat(self, host_id: str, beat: HostBeat, address: str = "") -> HostBeatAnswer:
        """A host that has proven to be this one says how it is. address: where it connects from.

        Raises:
            NotFound: it is not known here. Conflict: it speaks for another, or has heard a newer controller.
            StaleEpoch: an earlier process of this host is speaking.
        """
        host = self.host(host_id)
        incarnation = self._registry.incarnation
        if beat.host_id != host_id:
            raise Conflict(f"host {host_id!r} may not speak for {beat.host_id[:64]!r}")
        if beat.incarnation > incarnation:
            log.error("hosts.newer_controller", host_id=host_id, theirs=beat.incarnation)
            raise Conflict(
                f"host {host_id!r} has orders of controller {beat.incarnation}, this is {incarnation}"
            )
        host.follow_run(beat)
        wanted: tuple[str, ...] = ()
        if beat.seq > host.seq:
            host.seq = beat.seq
            self._hear(host, beat, address)
            wanted = take_beat(self._registry, host, beat, self._clock())
            self._pass_on(host, beat)
        orders = host.orders
        return HostBeatAnswer(
            next_beat_s=self._turns.next_beat_s(host),
            spread_s=spread_s(self._heartbeat, self._turns.count),
            wanted=wanted,
            facts_wanted=not host.has_told_facts,
            incarnation=incarnation if orders else 0,
            version=orders.version if orders else 0,
        )

    def leave(self, host_id: str, run_id: str = "") -> None:
        """A host says goodbye; whatever it had is gone. run_id: of the process that leaves, if it says.

        Raises:
            NotFound.
        """
        host = self.host(host_id)
        if run_id and host.run_id and run_id != host.run_id:
            return  # an earlier process of it
        if run_id:
            host.past_runs.append(run_id)
            host.run_id, host.seq = "", 0
        if not host.has_left:
            host.has_left = True
            self._say(host, "host.left", "it said goodbye")
            self._give_up(host, f"its host {host.name} has left")
            self._moved(host)

    # Silence

    def judge(self, paused_s: float = 0.0) -> None:
        """Judge every host's silence now. paused_s: how long nobody listened here.

        While a host's instances answer gateways it is not silent, whatever becomes of its beats (F23).
        """
        now_s = self._clock()
        silent: list[tuple[Host, float]] = []
        for host in self._hosts.values():
            host.heard_at_s += paused_s
            if not host.has_left:
                silent.append((host, now_s - host.heard_at_s))
        self._turns.expect(*_present(self._hosts.values(), now_s))
        # each by the interval told to it, in units of what one host alone would be told
        unit = self._heartbeat.interval_s
        by_interval = [seconds * unit / host.interval_s for host, seconds in silent]
        most = is_mass_loss(by_interval, self._heartbeat)
        in_mass = self._mass.look(most, len(silent), now_s, paused_s)
        for host, seconds in silent:
            told = patience(self._heartbeat, host.interval_s)
            unheard_s = min(seconds, now_s - host.vouched_at_s)
            signal = judge_heartbeat(
                self._mass.counted_s(unheard_s, now_s, told), told, in_mass=in_mass
            )
            standing = _SILENT[signal]
            if standing is Standing.SUSPECT and now_s < host.asked_at_s + GATEWAYS_ANSWER_S:
                continue
            if unheard_s < told.suspect_after_s <= seconds:
                standing = Standing.UNKNOWN
            if standing not in (host.silence, Standing.ALIVE):
                self._fall_silent(host, standing, unheard_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Judge silence while the block lasts. Who is known already is given the time to come back."""
        now_s, count = self._clock(), len(self._hosts)
        back_s = all_back_s(spread_s(self._heartbeat, count))
        self._registry.arrivals.hosts_come(back_s)
        for host in self._hosts.values():
            host.interval_s = usual_s(self._heartbeat, count)
            host.heard_at_s = now_s + FIRST_S + back_s
        self._turns.expect(*_present(self._hosts.values(), now_s))
        async with asyncio.TaskGroup() as tasks:
            watch = begin(tasks, Background.HOSTS, self._judge())
            yield
            watch.cancel()

    # Private

    async def _judge(self) -> None:
        looked_at_s = self._clock()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = self._clock()
            self.judge(own_pause_s(now_s - looked_at_s, LOOK_EVERY_S, self._heartbeat))
            looked_at_s = now_s

    def _records(self, host: Host) -> list[Record]:
        """What was ordered from this very host, and is known."""
        found = (self._registry.record(instance_id) for instance_id in host.since)
        return [record for record in found if record is not None]

    def _hear(self, host: Host, beat: HostBeat, address: str) -> None:
        before, facts = host.standing, host.facts
        was_heard, host.is_heard = host.is_heard, True
        host.heard_at_s, host.asked_at_s = self._clock(), -inf
        host.has_left = False
        host.silence = Standing.ALIVE
        host.says_draining = beat.draining
        if beat.facts is not None:
            host.take_facts(beat.facts)
        place = (beat.address or address or host.address, beat.port or host.port)
        if place != (host.address, host.port):
            host.address, host.port = place
            for record in self._records(host):
                instance = record.instance
                endpoint = host.endpoint(instance.instance_id)
                expected = msgspec.structs.replace(record.expected, endpoint=endpoint)
                self._registry.expect(instance.instance_id, expected, epoch=instance.epoch)
        if before in _UNHEARD:
            self._say(host, "host.back", f"it was {before.value}")
        if host.standing is not before or host.facts != facts or not was_heard:
            self._moved(host)

    def _pass_on(self, host: Host, beat: HostBeat) -> None:
        """What happened to instances there goes to the operators, in our words for whose they are."""
        for event in beat.events[-EVENTS_PER_BEAT:]:
            record = self._registry.record(event.instance_id)
            if event.instance_id not in host.since or record is None:
                continue
            if event.kind.startswith(("fetch.", "start.", "drain.")):
                fields = {**event.fields, "host": host.name}
                model = record.instance.model_name
                self._tell(msgspec.structs.replace(event, model=model, fields=fields))

    def _fall_silent(self, host: Host, standing: Standing, seconds: float) -> None:
        if host.silence is Standing.LOST:
            return
        host.silence = standing
        why = f"{_why_silent(host)} for {seconds:.1f} s"
        message = f"silent for {seconds:.1f} s"
        if standing is Standing.UNKNOWN:
            message = "it is not heard here, but what runs there answers gateways"
        self._say(host, f"host.{standing.value}", message)
        if standing is Standing.LOST:
            self._give_up(host, why)
            self._moved(host)
            return
        for record in self._records(host):
            instance = record.instance
            if standing is Standing.SUSPECT:
                self._registry.post(instance.instance_id, Signal.LATE, why)
            elif instance.reason.startswith(_why_silent(host)):
                self._registry.post(instance.instance_id, Signal.SEEN)
        self._moved(host)

    def _give_up(self, host: Host, reason: str) -> None:
        for record in self._records(host):
            gone(self._registry, record, reason)

    def _say(self, host: Host, kind: str, message: str) -> None:
        self._tell(
            OperatorEvent(
                kind=kind,
                message=f"{host.name}: {message}",
                fields={"host_id": host.host_id, "host": host.name},
            )
        )


# Private


def _why_silent(host: Host) -> str:
    return f"its host {host.name} has been silent"


def _present(hosts: Iterable[Host], now_s: float) -> tuple[int, int]:
    """How many there are that beat, and how many of them have to come back."""
    there = [one for one in hosts if one.standing not in _GIVEN_UP]
    return len(there), sum(not one.is_heard or one.is_late(now_s) for one in there)
