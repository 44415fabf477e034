"""Lease: which of several controllers leads. A row of the database says so, by the database's time.

A leadership has a number that only grows: the incarnation of its controller's snapshots, and what each of
its writes is fenced by (postgres.py). It is renewed every second and lost after three of silence; who
leads gives up by its own clock half a second before. Not here: what a controller does about it.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing

import msgspec
import sqlalchemy as sa

from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError, Standby
from hostler.storage import tables
from hostler.storage.line import Line
from hostler.storage.postgres import ServerLine

log = logger(__name__)

RENEW_S = 1.0
TTL_S = 3.0  # not renewed for so long: another may lead
HOLD_S = 2.5  # what its holder takes it for, from the beginning of the renewal on
STEADY_S = 10.0  # who led for so long may go on at once after a crash of its process
KEPT = 1000  # leaderships, for who asks later
_AGAIN_S = 0.2  # after a renewal that failed


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A controller that could lead.

    owner: of all processes that one supervisor starts in its place; nobody else has it.
    name: for people. pid, version: of the process.
    """

    owner: str
    name: str
    pid: int = 0
    version: str = ""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads, at one look. number 0: nobody ever did. silent_s: since it was renewed."""

    number: int = 0
    owner: str = ""
    name: str = ""
    taken_at_s: float = 0.0  # Unix time of the database, as the others
    renewed_at_s: float = 0.0
    is_ended: bool = True
    silent_s: float = 0.0
    looked_at_s: float = 0.0

    @property
    def is_held(self) -> bool:
        """Whether somebody leads now."""
        return not self.is_ended and self.silent_s < TTL_S

    def is_free_for(self, candidate: Candidate, watched_s: float) -> bool:
        """Whether this candidate may lead now. watched_s: for how long it has looked without a gap.

        After the database was away, who led before has the first three seconds: its models still run.
        """
        if self.is_ended:
            return True
        if self.owner == candidate.owner:  # its process is dead: we are in its place
            return self.silent_s >= TTL_S or self.renewed_at_s - self.taken_at_s >= STEADY_S
        # A clock that was set back makes a silence negative: then only what was watched counts.
        is_silent = self.silent_s >= TTL_S or self.silent_s < -TTL_S
        return is_silent and watched_s >= TTL_S


class Lease:
    """The row, seen by one candidate."""

    def __init__(self, line: Line, candidate: Candidate) -> None:
        """line: of its own. Needed: the first look makes nothing; the tables are there."""
        self._line = line
        self.candidate = candidate
        self._watch: tuple[int, float, float] | None = None  # number, renewal, since when unchanged
        self._is_first = True

    def look(self) -> Standing:
        """Return who leads. Raises StorageBusy, StorageFailed."""
        try:
            found = self._line.rows(_newest())
        except HostlerError:
            self._watch, self._is_first = None, False
            raise
        return _standing(found[0]) if found else Standing()

    def try_take(self) -> tuple[Standing, int | None]:
        """Look, and lead if nobody does. Return what was seen, and the number of the new leadership.

        Raises:
            StorageBusy, StorageFailed, InsufficientStorage: not now.
        """
        seen = self.look()
        if not seen.is_free_for(self.candidate, self._watched_s(seen)):
            return seen, None
        try:
            with self._line.writing() as connection:
                return seen, self._take(connection, seen)
        except Standby:
            return seen, None  # another was quicker

    def renew(self, number: int) -> bool:
        """Say that we still lead; False: another one does, or we gave it back."""
        table = tables.leaderships
        ours = sa.and_(table.c.number == number, table.c.ended_at_s.is_(None))
        with self._line.writing() as connection:
            done = connection.execute(sa.update(table).where(ours).values(renewed_at_s=_NOW))
            return done.rowcount > 0

    def give_back(self, number: int) -> None:
        """Let another one lead from now on."""
        table = tables.leaderships
        ours = sa.and_(table.c.number == number, table.c.ended_at_s.is_(None))
        with self._line.writing() as connection:
            connection.execute(sa.update(table).where(ours).values(ended_at_s=_NOW))

    # Private

    def _watched_s(self, seen: Standing) -> float:
        """For how long we have seen this very renewal. A lease that was dead when we came is so at once."""
        now_s = _now_s()
        if self._is_first:
            self._is_first = False
            if seen.silent_s >= TTL_S:
                return TTL_S
        if self._watch is None or self._watch[:2] != (seen.number, seen.renewed_at_s):
            # its silence until now counts, when nothing kept us from seeing it renewed
            before_s = min(max(seen.silent_s, 0.0), TTL_S) if self._watch is not None else 0.0
            self._watch = (seen.number, seen.renewed_at_s, now_s - before_s)
        return now_s - self._watch[2]

    def _take(self, connection: sa.Connection, seen: Standing) -> int:
        """Raises Standby when another one was quicker."""
        counters, table = tables.counters, tables.leaderships
        # First: who takes has this row, so that the others wait and then see what became of it.
        count = self._line.insert(counters).values(name="incarnation", value=1)
        count = count.on_conflict_do_update(
            index_elements=[counters.c.name], set_={"value": counters.c.value + 1}
        )
        number = int(connection.execute(count.returning(counters.c.value)).scalar_one())
        # FOR UPDATE: waits for writes of the one before that are under way.
        row = connection.execute(_newest().with_for_update()).first()
        now = _standing(row) if row else Standing()
        if (now.number, now.renewed_at_s, now.is_ended) != (
            seen.number,
            seen.renewed_at_s,
            seen.is_ended,
        ):
            raise Standby
        if not now.is_ended:
            last = table.c.number == now.number
            connection.execute(sa.update(table).where(last).values(ended_at_s=_NOW))
        connection.execute(
            sa.insert(table).values(
                number=number,
                owner=self.candidate.owner,
                name=self.candidate.name,
                taken_at_s=_NOW,
                renewed_at_s=_NOW,
                body=msgspec.json.encode(self.candidate).decode(),
            )
        )
        connection.execute(sa.delete(table).where(table.c.number <= number - KEPT))
        return number


class Holding:
    """Renews a leadership from a thread of its own, and ends it by another one's clock.

    lost: called once, from one of the threads, with the reason; it must end this process.
    """

    def __init__(self, lease: Lease, number: int, began_s: float, lost: Callable[[str], None]):
        """began_s: by `clock`, before the leadership was taken."""
        self._lease = lease
        self._number = number
        self._until_s = began_s + HOLD_S
        self._lost = lost
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("lease.renew", self._renew), ("lease.watch", self._watch))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Renew no more, and watch no more. The row stays as it is."""
        self._over.set()

    def give_back(self) -> None:
        """Stop, and let another one lead at once. A database that is away learns it by our silence."""
        self.stop()
        try:
            self._lease.give_back(self._number)
        except HostlerError as error:
            log.warning("lease.not_given_back", why=error.message)

    # Private

    def _renew(self) -> None:
        wait_s = RENEW_S
        is_well = True
        while not self._over.wait(wait_s):
            began_s = _now_s()
            try:
                is_ours = self._lease.renew(self._number)
            except HostlerError as error:
                if is_well:
                    log.warning("lease.not_renewed", why=error.message)
                is_well, wait_s = False, _AGAIN_S
                continue
            if not is_ours:
                self._end("another controller has taken the lead")
                return
            if not is_well:
                log.info("lease.renewed", number=self._number)
            is_well, wait_s = True, RENEW_S
            self._until_s = began_s + HOLD_S

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, min(self._until_s - _now_s(), _AGAIN_S))):
            if _now_s() >= self._until_s:
                self._end(f"the lease could not be renewed for {HOLD_S:g} s")
                return

    def _end(self, why: str) -> None:
        if not self._over.is_set():
            self._over.set()
            self._lost(why)


def leader_of(url: str) -> str | None:
    """Return who leads in this database, None when nobody does. Changes nothing.

    Raises:
        StorageBusy, StorageFailed: it cannot be asked, or has no tables yet.
    """
    with closing(ServerLine(url)) as line:
        seen = Lease(line, Candidate(owner="", name="")).look()
    return seen.name if seen.is_held else None


def clock() -> float:
    """Seconds that pass also while this machine sleeps, or this process is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Private

_now_s = clock
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)


def _newest() -> sa.Select[tuple[object, ...]]:
    table = tables.leaderships
    wanted = sa.select(
        table.c.number,
        table.c.owner,
        table.c.name,
        table.c.taken_at_s,
        table.c.renewed_at_s,
        table.c.ended_at_s,
        _NOW.label("now_s"),
    )
    return wanted.order_by(table.c.number.desc()).limit(1)


def _standing(row: sa.Row[tuple[object, ...]]) -> Standing:
    found = row._mapping
    return Standing(
        number=found["number"],
        owner=found["owner"],
        name=found["name"],
        taken_at_s=found["taken_at_s"],
        renewed_at_s=found["renewed_at_s"],
        is_ended=found["ended_at_s"] is not None,
        silent_s=found["now_s"] - found["renewed_at_s"],
        looked_at_s=found["now_s"],
    )
