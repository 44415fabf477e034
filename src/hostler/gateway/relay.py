"""Relay: one request from its claim to its last byte: slots, retries, and what the client is told.

Until the first byte has gone to the client a failed attempt can be made again elsewhere; after it a
failure is an error event and an unclean end, never another instance's text. Copying is Attempt's.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from hostler.core.errors import HostlerError, WorkerLost
from hostler.core.model import PrefixReach
from hostler.core.serving import FallbackCause
from hostler.gateway.answers import STREAM_LINES, own_error
from hostler.gateway.attempt import Attempt
from hostler.gateway.continuation import MARK, Continuation, can_continue
from hostler.gateway.detours import Detour, cause_of, is_too_long
from hostler.gateway.job import Job
from hostler.gateway.place import Place
from hostler.gateway.timeline import CLIENT_GONE, Timeline
from hostler.gateway.usage import find_usage, untold
from hostler.routing.claim import Claim, Outcome
from hostler.routing.pool import Busy
from hostler.routing.router import NOBODY
from hostler.routing.verdict import Action, Failure, explain, final_error, judge
from hostler.wire.exchange import Exchange
from hostler.wire.sse import data_event, error_event

if TYPE_CHECKING:
    from hostler.gateway.flights import Ticket
    from hostler.gateway.relays import Relays

KEEP_ALIVE = b": keep-alive\n\n"  # a comment: readers of events skip it
_OK: Final = Outcome.OK  # as plain names: see wire/phase.py
_SLOT: Final = PrefixReach.SLOT
# Of engines that answered: when all say `not now`, trying each triples the load. A worker that died
# takes its requests' load with it.
BUDGETED = frozenset({Failure.UNAVAILABLE, Failure.UNUSABLE, Failure.ENGINE_ERROR})


class Relay:
    """One request."""

    __slots__ = (
        "_attempt",
        "_exclude",
        "_is_over",
        "_lost",
        "_place",
        "_shared",
        "_word",
        "attempts",
        "began_s",
        "detour",
        "exchange",
        "is_budgeted",
        "is_open",
        "is_owed",
        "is_started",
        "job",
        "said",
        "ticket",
        "timeline",
        "turns",
    )

    def __init__(self, shared: "Relays", exchange: Exchange, job: Job) -> None:
        self._shared = shared
        self.exchange = exchange
        self.job = job
        self.is_started = False  # a byte of an answer has gone to the client
        self.said: Continuation | None = None  # what a stream that may be continued has said
        if job.stream and job.model.routing.continue_streams and can_continue(job):
            self.said = Continuation(job.body)
        self.is_open = False  # a head and comments have: too late for a status
        self._attempt: Attempt | None = None
        self.detour: Detour | None = None  # another model is asked in the place of its own
        self.turns = 0  # how many were
        self.attempts = 0
        self._lost = 0
        self._exclude: frozenset[str] = NOBODY
        self._place: Place | None = None  # in a queue
        self._is_over = False
        self.ticket: Ticket | None = None  # of a flight (flights.py)
        self.is_owed = False  # it gave a slot back for others
        self.is_budgeted = False  # it has made an attempt that counts against the budget
        self._word: tuple[Attempt, int, bytes, bytes] | None = None  # of an engine that said 5xx
        self.began_s = shared.clock()
        self.timeline = Timeline(
            job.request_id, job.key_id, job.model.name, job.route_name, job.stream, self.began_s
        )
        self.timeline.asked = job.asked
        exchange.on_gone = self._gone

    @property
    def attempt(self) -> Attempt | None:
        """The last try, over or not."""
        return self._attempt

    def begin(self) -> None:
        """Look for a slot."""
        self._seek(None)

    def end(self, error: HostlerError) -> None:
        """Stop whatever it does, and tell the client why."""
        if not self._is_over:
            self._leave_queue()
            self._stop_attempt(Outcome.CLIENT_GONE)
            _tell(self, error)

    def note_silence(self, instance_id: str, is_down: bool) -> None:
        """See Relays.note_silence."""
        attempt = self._attempt
        if attempt is None or attempt.is_over or attempt.claim.instance.instance_id != instance_id:
            return
        attempt.catch_up()
        if is_down and not attempt.is_heard:
            self.attempt_failed(Failure.LOST)
        attempt.is_heard = False

    def keep_alive(self) -> None:
        """Tell the client of a stream, and the proxies on the way, that it is not forgotten (F63).

        From here on a failure is an error event; another attempt may still be made.
        """
        if not self.is_open:
            self.is_open = True
            self.exchange.start(200, (), None, STREAM_LINES)
        self.exchange.write(KEEP_ALIVE)

    # For the attempt

    def start(self, lines: bytes, length: int | None) -> None:
        """Send the head of the answer; from here on there is no other attempt."""
        self.is_started = True
        self.timeline.started(self._shared.clock())
        if self.ticket is not None:
            self.ticket.landed()
        exchange, attempt = self.exchange, self._attempt
        if attempt is not None:
            exchange.on_pause, exchange.on_resume = attempt.pause, attempt.resume
        if not self.is_open:
            exchange.start(200, (), length, lines + self._lines())

    def answered(self, status: int, body: bytes, lines: bytes, outcome: Outcome) -> None:
        """The engine answered, and this whole answer is what the client gets. lines: of headers.

        But for a 5xx: another engine is asked, and this is told if none knows better.
        """
        if outcome is Outcome.UPSTREAM_STATUS and self._attempt is not None:
            errors, self._word = 1 + bool(self._word), (self._attempt, status, body, lines)
            self.attempt_failed(Failure.ENGINE_ERROR, errors=errors)
            return
        if outcome is _OK:
            used = self._attempt.assembled() if self._attempt is not None else None
            self.timeline.used = used = used or find_usage(body) or untold(self.job.route)
            if self._attempt is not None and used is not None and not used.is_estimated:
                self._attempt.claim.answer_tokens = used.completion
        self._stop_attempt(outcome)
        if outcome is _OK:
            self._clear_suspicion()
        if outcome is not _OK and _turns_away(
            self,
            FallbackCause.CONTEXT_TOO_LONG if is_too_long(status, body) else None,
            partial(_send, self, status, body, lines),
        ):
            return
        _send(self, status, body, lines)

    def succeeded(self) -> None:
        """What was started is complete."""
        self._stop_attempt(_OK)
        self._clear_suspicion()
        self.exchange.end()
        self._finished(200)

    def ended_by_engine(self) -> None:
        """The engine's own error event was the last thing said in a started stream."""
        self._stop_attempt(Outcome.UPSTREAM_STATUS, self.job.fingerprint)
        self.exchange.abort()
        self._finished(502, "upstream_error")

    def attempt_failed(self, failure: Failure, *, errors: int = 1) -> None:
        """Account for a failed attempt, then do what `judge` says. errors: see there."""
        shared, job, attempt = self._shared, self.job, self._attempt
        if attempt is None or attempt.is_over:
            return
        instance_id = attempt.claim.instance.instance_id
        shared.metrics.attempt_failed(job.model.name, failure.value)
        self.timeline.failed(failure.value, shared.clock())
        if failure is Failure.LOST:
            self._lost += 1
            shared.quarantine.note_loss(job.fingerprint, instance_id)
        outcome = _OUTCOMES[failure]
        self._exclude = self._exclude | {instance_id}
        self._stop_attempt(outcome, job.fingerprint if outcome is Outcome.UPSTREAM_STATUS else b"")
        said = self.said if self.is_started else None
        goes_on = said is not None and said.go_on(job, attempt.lane.dialect)
        action = judge(
            failure,
            attempts=self.attempts,
            attempts_max=shared.config.attempts + self.turns,
            lost=self._lost,
            lost_max=shared.config.lost_max,
            started=self.is_started and not goes_on,
            errors=errors,
        )
        if action is Action.RETRY and (failure not in BUDGETED or shared.spend(self)):
            shared.metrics.retried(job.model.name)
            self._seek(failure)
        else:
            self._fail(WorkerLost() if self.is_started else final_error(failure))

    # Private

    def _seek(self, after: Failure | None) -> None:
        """Get a slot, now or in turn. after: what ended the attempt before."""
        try:
            job = self.job
            claim = self._shared.router.claim(job.model.name, job, exclude=self._exclude)
        except Busy:
            self._queue(after)
        except HostlerError as error:
            self._fail(explain(error, after))
        else:
            self._try(claim)

    def _queue(self, after: Failure | None) -> None:
        shared = self._shared

        def done(result: Claim | HostlerError) -> None:
            self._place = None
            if isinstance(result, HostlerError):
                self._fail(explain(result, after))
            else:
                self._try(result)

        wait_s = shared.router.wait_s(self.job.model.name)
        if self.detour is not None:  # in all it waits no longer than for one model
            wait_s = max(0.0, wait_s - (shared.clock() - self.began_s))
        try:
            shared.flights.make_room(self.job.model.name)
            place = Place(shared.router, self, self._exclude, wait_s, done)
        except HostlerError as error:
            self._fail(explain(error, after))
            return
        if place.is_taken:
            self._place = place
            self.timeline.queued(shared.clock())

    def _try(self, claim: Claim) -> None:
        """Ask the instance, now or after another request that reads the same."""
        if (
            claim.instance.prefix_reach is _SLOT
            or self.is_started
            or not self._shared.flights.boards(self, claim)
        ):
            self.depart(claim)

    def depart(self, claim: Claim) -> None:
        self.attempts += 1
        turn = "goes on there" if self.is_started else self.job.turn
        why = f"{turn}: {claim.why}" if turn else claim.why
        now_s = claim.since_s if self.ticket is None else self._shared.clock()
        self.timeline.tried(claim.instance.instance_id, why, now_s)
        before, attempt = self._attempt, None
        try:
            lane = self._shared.lanes.lane(claim.instance)
            request = lane.request(self.job)
            attempt = self._attempt = Attempt(self, claim, lane)
            if self.said is not None:
                self.said.begin()
        except HostlerError as error:
            if self.ticket is not None:
                self.ticket.ended(Outcome.CLIENT_ERROR)
            self._fail(error)
            return
        finally:
            if attempt is None:
                claim.release(Outcome.CLIENT_ERROR)
        attempt.start(request)
        if self.is_started:
            self.exchange.on_pause, self.exchange.on_resume = attempt.pause, attempt.resume
            if before is not None and before.is_paused:
                attempt.pause()
            self.exchange.write(MARK)

    def _stop_attempt(self, outcome: Outcome, witness: bytes = b"") -> None:
        attempt = self._attempt
        if attempt is not None and not attempt.is_over:
            attempt.stop(outcome, witness)
            if self.ticket is not None:
                self.ticket.ended(outcome)

    def _leave_queue(self) -> None:
        if self.ticket is not None:
            self.ticket.leave()
        place, self._place = self._place, None
        if place is not None:
            place.leave()

    def _clear_suspicion(self) -> None:
        if self._shared.quarantine:
            self._shared.quarantine.note_success(self.job.fingerprint)

    def _lines(self) -> bytes:
        """The header lines that say who answered, and after how many attempts."""
        attempt = self._attempt
        if attempt is None:
            return b""
        lines = attempt.lane.answer_lines(attempt.claim.policy)
        return lines if self.attempts == 1 else b"%bx-attempts: %d\r\n" % (lines, self.attempts)

    def _fail(self, error: HostlerError) -> None:
        """No instance of the model served it: another model does, or the client is told."""
        cause, tell = cause_of(error), partial(_tell, self, error)
        if self._word is not None and not self.is_started:
            self._attempt, status, body, lines = self._word
            cause, tell = None, partial(_send, self, status, body, lines)
        if not _turns_away(self, cause, tell):
            tell()

    def _gone(self) -> None:
        """The client left: nobody needs the answer any more. Some leave at [DONE], and have it all."""
        self._leave_queue()
        attempt = self._attempt
        has_all = attempt is not None and not attempt.is_over and attempt.has_said_all
        self._stop_attempt(_OK if has_all else Outcome.CLIENT_GONE)
        self._finished(*((200, "") if has_all else (CLIENT_GONE, "client_gone")))

    def _finished(self, status: int, code: str = "") -> None:
        """Write it down, once."""
        if self._is_over:
            return
        self._is_over = True
        if self.is_started and self._attempt is not None:
            self.timeline.used = self._attempt.used()
            self.timeline.events = self._attempt.events
        # they know each other: without this they would wait for the collector
        self._attempt = self.detour = self._word = None
        shared = self._shared
        shared.under_way.pop(self, None)
        if shared.deadlines:
            shared.forget_deadline(self)
        if self.is_budgeted:
            shared.retrying -= 1
        timeline = self.timeline
        timeline.ended(status, code, shared.clock())
        shared.note_end(timeline)


# Private

_OUTCOMES = {
    Failure.REFUSED: Outcome.REFUSED,
    Failure.LOST: Outcome.LOST,
    Failure.WRONG_INSTANCE: Outcome.REFUSED,
    Failure.UNAVAILABLE: Outcome.BUSY,
    Failure.UNUSABLE: Outcome.UPSTREAM_STATUS,
    Failure.ENGINE_ERROR: Outcome.UPSTREAM_STATUS,
}


def _turns_away(relay: Relay, cause: FallbackCause | None, end: Callable[[], None]) -> bool:
    """Does another model answer instead? Never after a byte, nor what has killed its share (F07)."""
    shared, attempt, job = relay._shared, relay._attempt, relay.job
    if relay.is_started or relay._lost >= shared.config.lost_max:
        return False

    def told() -> None:
        relay._attempt, relay.job = attempt, job
        end()

    return shared.detours.go_on(relay, cause, told, partial(shared.spend, relay))


def _send(relay: Relay, status: int, body: bytes, lines: bytes) -> None:
    """Send a whole answer of an engine, in whatever shape is still possible."""
    if relay.is_started:  # the rest of a stream was refused
        _tell(relay, WorkerLost())
        return
    if not relay.is_open:
        relay.exchange.send(status, body, (), lines + relay._lines())
    else:
        relay.exchange.write(data_event(body.replace(b"\r", b" ").replace(b"\n", b" ")))
        relay.exchange.abort()
    relay._finished(status)


def _tell(relay: Relay, error: HostlerError) -> None:
    """Tell the client of a failure, in whatever shape is still possible."""
    exchange = relay.exchange
    if not relay.is_started and not relay.is_open:
        status, body, fields = own_error(error)
        exchange.send(status, body, fields, relay._lines())
    else:
        if relay.job.stream:
            exchange.write(error_event(error))
        exchange.abort()
    relay._finished(error.http_status, error.code)
