"""Flights: requests that wait because another one reads the same long new prompt at their instance.

Who leads and who follows is for `routing/flights.py` to say. Here they wait: holding the slot they were lent
as long as nobody else wants it, for so long at most as they would stand in the queue, and then they go
together. Where an engine's slots share nothing, what is read is lent to the others (`gateway/loans.py`).
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hostler.app.telemetry import logger
from hostler.core.change import Change
from hostler.core.model import PrefixReach
from hostler.core.request import Route
from hostler.core.snapshot import InstanceView
from hostler.core.timeline import FlightEnd
from hostler.engines.assembly import can_assemble
from hostler.engines.dialect import find_dialect
from hostler.gateway.job import Job
from hostler.gateway.lanes import PoolOf
from hostler.gateway.loans import Loans
from hostler.gateway.metrics import GatewayMetrics
from hostler.routing.claim import Claim, Outcome
from hostler.routing.flights import NEW_BLOCKS, NEW_BYTES, Flight, FlightTable, Passage
from hostler.routing.prefix import BLOCK_BYTES
from hostler.routing.router import Router

if TYPE_CHECKING:
    from hostler.gateway.relay import Relay

log = logger(__name__)

# A request is late when it has waited so long, or as long as it may stand in a queue: 4,000 tokens take a
# small CPU less. It is half of what makes a silent engine suspect, so one that hangs is found out as before.
WAIT_S = 30.0
_LENT_TIMES = 2  # so often that where it is lent: without, all of them would read, and side by side
_PROMPTED = frozenset({Route.CHAT, Route.COMPLETIONS})
_NEXT_LEADS = frozenset({Outcome.CLIENT_GONE, Outcome.CLIENT_ERROR})


class Ticket:
    """What a relay with a long prompt carries. claim: the slot it holds while it waits."""

    __slots__ = ("_flights", "claim", "passage", "relay", "timer")

    def __init__(self, flights: "Flights", relay: "Relay", passage: "Passage[Relay]") -> None:
        self._flights = flights
        self.relay = relay
        self.passage = passage
        self.claim: Claim | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        return self.timer is not None

    # For the relay

    def landed(self) -> None:
        """The first token is there."""
        self._flights.landed(self)

    def ending(self, outcome: Outcome) -> None:
        """An attempt is over, and its slot is given back next: whoever gets it finds it free."""
        self._flights.ending(self, outcome)

    def ended(self, outcome: Outcome) -> None:
        """It is, and its slot is back."""
        self._flights.ended(self, outcome)

    def leave(self) -> None:
        """Whatever it waits for, nobody needs it any more."""
        self._flights.leave(self)


class Flights:
    """Those of one gateway."""

    def __init__(
        self, router: Router, metrics: GatewayMetrics, stall_s: float, pool: PoolOf
    ) -> None:
        self.tasks: asyncio.TaskGroup | None = None  # where loans are made
        self._router = router
        self._metrics = metrics
        self._stall_s = stall_s
        self._loans = Loans(metrics, router.clock, pool)
        self._loaning: dict[Flight[Relay], asyncio.Task[None]] = {}
        self._table: FlightTable[Relay] = FlightTable()
        self._holding: dict[str, dict[Ticket, None]] = {}  # by model: who holds a slot and waits

    def take(self, change: Change) -> None:
        self._table.forget(change.gone)
        self._loans.forget(change.gone)

    def boards(self, relay: "Relay", claim: Claim) -> bool:
        """Does this request wait before it goes to its instance? Then it is told when to go."""
        job, instance = relay.job, claim.instance
        rules = job.model.routing
        if not rules.single_flight or len(relay.exchange.request.body) < NEW_BYTES:
            return False
        is_lent = instance.prefix_reach is PrefixReach.LENT
        if is_lent and not (rules.lend_prefix and self._loans.allows(instance.instance_id)):
            return False
        if not _has_prefix(job):
            return False
        wait_s = self._wait_s(job) * (_LENT_TIMES if is_lent else 1) - relay.timeline.flown_s
        passage = self._table.board(
            relay,
            instance,
            job.blocks,
            len(relay.exchange.request.body) // BLOCK_BYTES,
            can_lead=_shows_its_first_token(job, instance.engine),
            may_follow=wait_s > 0,
        )
        ticket = relay.ticket = Ticket(self, relay, passage)
        flight = passage.flight
        if flight is None or flight.leader is passage:
            return False
        leader = flight.leader.who
        leader.timeline.led(len(flight.followers))
        relay.timeline.follows(leader.job.request_id, self._router.clock())
        self._hold(ticket, claim, wait_s)
        if is_lent and not flight.is_lent:
            self._lend(flight, wait_s)
        return True

    def close(self) -> None:
        """Begin no loan any more, and give up those under way."""
        self.tasks = None
        for task in self._loaning.values():
            task.cancel()

    def make_room(self, model: str) -> None:
        """A request of this model finds no slot: who holds one and waits gives it back, the last first."""
        holding = self._holding.get(model)
        if holding:
            self._give_back(next(reversed(holding)))

    def landed(self, ticket: Ticket) -> None:
        """See Ticket."""
        self._set_off(self._table.landed(ticket.passage), FlightEnd.LANDED)

    def ending(self, ticket: Ticket, outcome: Outcome) -> None:
        """See Ticket."""
        relay, passage, share = ticket.relay, ticket.passage, None
        if outcome is Outcome.OK:
            if not relay.is_started:  # else that was told at its first token
                self._set_off(self._table.landed(passage), FlightEnd.LANDED)
            share = _cached_share(relay)
        is_right = self._table.ended(passage, share)
        told = relay.timeline.flight
        if not is_right and told is not None and told.end is FlightEnd.LENT and relay.attempt:
            self._loans.in_vain(relay.attempt.claim.instance)

    def ended(self, ticket: Ticket, outcome: Outcome) -> None:
        """See Ticket."""
        passage, flight = ticket.passage, ticket.passage.flight
        ticket.relay.ticket = None
        if flight is not None and outcome in _NEXT_LEADS:
            self._pass_on(passage)
        elif flight is not None:
            self._set_off(self._table.given_up(flight)[1:], FlightEnd.FAILED)
        self._table.ended(passage)

    def leave(self, ticket: Ticket) -> None:
        """See Ticket."""
        if ticket.waits:
            self._drop(ticket, self._release(ticket, FlightEnd.GONE))

    # Private

    def _wait_s(self, job: Job) -> float:
        stall_s = job.model.routing.stall_s or self._stall_s
        return min(WAIT_S, self._router.wait_s(job.model.name), stall_s / 2)

    def _lend(self, flight: "Flight[Relay]", wait_s: float) -> None:
        """Have the leader's prompt read on nobody's behalf: the slot of an answer cannot be lent."""
        leader = flight.leader.who
        ticket, attempt = leader.ticket, leader.attempt
        if self.tasks is None or ticket is None or attempt is None or attempt.is_over:
            return
        flight.is_lent = True
        instance = attempt.claim.instance
        ticket.claim = attempt.recall()
        ticket.timer = asyncio.get_running_loop().call_later(wait_s, self._late, ticket)
        leader.timeline.follows(leader.job.request_id, self._router.clock())
        leader.timeline.led(len(flight.followers))
        held = sum(
            1
            for one in self._holding.get(instance.model_name, ())
            if one.claim is not None and one.claim.instance.instance_id == instance.instance_id
        )
        peers, instance_id = self._router.peers, instance.instance_id
        others = self._router.load.get(instance_id, 0) - held - 1
        if peers is not None:
            others += peers.elsewhere(instance_id)
        work = self._carry(flight, instance, leader.job, max(0, others), wait_s)
        self._loaning[flight] = self.tasks.create_task(work, name="loan")

    async def _carry(
        self, flight: "Flight[Relay]", instance: InstanceView, job: Job, others: int, wait_s: float
    ) -> None:
        """Carry a loan out; then all go, whatever came of it."""

        def copies() -> int:
            tickets = [one.who.ticket for one in flight.followers]
            return sum(1 for one in tickets if one is not None and one.claim is not None)

        slots = 0
        try:
            slots = await self._loans.lend(
                instance, job, others=others, copies=copies, timeout_s=wait_s
            )
        except Exception as error:  # boundary: one loan; its requests go as without it
            log.error("loan.broken", instance_id=instance.instance_id, error=error)
        finally:
            del self._loaning[flight]
            if slots:
                self._set_off(self._table.lent(flight, slots), FlightEnd.LENT)
            else:
                self._set_off(self._table.given_up(flight), FlightEnd.UNLENT)

    def _hold(self, ticket: Ticket, claim: Claim, wait_s: float) -> None:
        """Wait, in this slot as long as nobody else waits for one."""
        loop = asyncio.get_running_loop()
        ticket.claim = claim
        ticket.timer = loop.call_later(wait_s, self._late, ticket)
        model = claim.instance.model_name
        self._holding.setdefault(model, {})[ticket] = None
        if self._router.waiting(model):
            # not at once: a queue of equals would give back one inside the other
            loop.call_soon(self._give_back, ticket)

    def _give_back(self, ticket: Ticket) -> None:
        """Its slot is wanted: it waits on without one."""
        claim = self._take_claim(ticket)
        if claim is not None:
            ticket.relay.is_owed = True
            claim.release(Outcome.UNUSED)

    def _take_claim(self, ticket: Ticket) -> Claim | None:
        claim, ticket.claim = ticket.claim, None
        if claim is not None:
            model = claim.instance.model_name
            holding = self._holding.get(model, {})
            holding.pop(ticket, None)  # who leads a loan is not in it
            if not holding:
                self._holding.pop(model, None)
        return claim

    def _late(self, ticket: Ticket) -> None:
        self._pass_on(ticket.passage)
        self._go(ticket, FlightEnd.LATE)

    def _pass_on(self, passage: "Passage[Relay]") -> None:
        """A request leaves its flight; if it led, the next one leads, in its own slot."""
        flight = passage.flight
        heir = self._table.left(passage)
        if flight is not None and flight.is_lent:
            if flight.leader is passage and flight in self._loaning:  # it was the last one
                self._loaning[flight].cancel()
        elif heir is not None:
            self._set_off([heir], FlightEnd.LED)

    def _set_off(self, passages: "Iterable[Passage[Relay]]", end: FlightEnd) -> None:
        for passage in passages:
            ticket = passage.who.ticket
            if ticket is not None and ticket.passage is passage and ticket.waits:
                self._go(ticket, end)

    def _go(self, ticket: Ticket, end: FlightEnd) -> None:
        """It waits no longer: to its instance, if it has a slot there, else wherever one is free."""
        claim = self._release(ticket, end)
        if claim is not None and end is not FlightEnd.FAILED and _is_there(self._router, claim):
            ticket.relay.depart(claim)
        else:
            self._drop(ticket, claim)
            ticket.relay.begin()

    def _release(self, ticket: Ticket, end: FlightEnd) -> Claim | None:
        """The wait is over. Returns the slot that it held through it."""
        if ticket.timer is not None:
            ticket.timer.cancel()
            ticket.timer = None
        relay = ticket.relay
        relay.timeline.flown(end, self._router.clock())
        self._metrics.flown(relay.job.model.name, end)
        return self._take_claim(ticket)

    def _drop(self, ticket: Ticket, claim: Claim | None) -> None:
        """It is no part of anything here any more."""
        ticket.relay.ticket = None
        self._pass_on(ticket.passage)
        self._table.ended(ticket.passage)
        if claim is not None:
            claim.release(Outcome.UNUSED)


# Private


def _is_there(router: Router, claim: Claim) -> bool:
    """Is the instance still one that requests are sent to?"""
    instance = claim.instance
    usable = router.usable(instance.model_name)
    return any(one.instance_id == instance.instance_id for one in usable)


def _cached_share(relay: "Relay") -> float | None:
    """Of its prompt, how much the engine says it had; None: it does not say."""
    used = relay.timeline.used or (relay.attempt.used() if relay.attempt is not None else None)
    return used.cached / used.prompt if used and used.prompt and not used.is_estimated else None


def _has_prefix(job: Job) -> bool:
    """Has it a prompt whose beginning an engine may keep, long enough to wait for?"""
    if job.path or job.route not in _PROMPTED or job.body.get("cache_prompt") is False:
        return False
    return len(job.blocks) >= NEW_BLOCKS


def _shows_its_first_token(job: Job, engine: str) -> bool:
    """Is it seen here when the engine has read the prompt?"""
    return job.stream or (find_dialect(engine).reports_progress and can_assemble(job.body))
