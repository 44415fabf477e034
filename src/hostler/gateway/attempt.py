"""Attempt: one try of a request on one instance. Judges the answer's head and copies its body.

It tells the relay how it ended, once. Not here: slots, retries, and what a client is told of failures.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from hostler.core.errors import UpstreamError
from hostler.engines.assembly import PROGRESS, Assembly, wants_progress, without_progress
from hostler.gateway.answers import (
    JSON_LINES,
    REFUSED_LINES,
    STREAM_LINES,
    AnswerHead,
    Fields,
    engine_error,
    shape_error,
)
from hostler.gateway.lanes import Lane
from hostler.gateway.streams import StreamWatch
from hostler.gateway.usage import HEAD_BYTES, TAIL_BYTES, Used, find_usage, read_usage, together
from hostler.routing.claim import Claim, Outcome
from hostler.routing.verdict import Failure
from hostler.wire.client import Call, UpstreamLost
from hostler.wire.direct import Way
from hostler.wire.sse import EventCutter

if TYPE_CHECKING:
    from hostler.gateway.relay import Relay

WHOLE_BYTES = 1024 * 1024  # of an answer that is held back until it is complete
ERROR_BYTES = 256 * 1024  # of an engine's error that is read
MISDIRECTED: Final = 421  # of an engine or a relay: it is not the instance meant, or not any more


class Mode(IntEnum):
    """What is done with the body of the engine's answer."""

    WHOLE = 0  # held back until complete
    EVENTS = 1  # forwarded event by event
    PASS = 2  # forwarded as it comes: too long to hold back
    ERROR = 3  # read, then reshaped
    ASSEMBLE = 4  # a stream, put together for a client that wants none


# As plain names: see wire/phase.py.
_WHOLE: Final = Mode.WHOLE
_EVENTS: Final = Mode.EVENTS
_PASS: Final = Mode.PASS
_ERROR: Final = Mode.ERROR
_ASSEMBLE: Final = Mode.ASSEMBLE
_OK: Final = Outcome.OK


class Attempt:
    """One try. It is the Sink of its call, and holds the slot of its claim until it ends."""

    __slots__ = (
        "_answer",
        "_assembly",
        "_call",
        "_cutter",
        "_exchange",
        "_has_partial",
        "_hides",
        "_length",
        "_parts",
        "_relay",
        "_size",
        "_status",
        "_watch",
        "claim",
        "has_begun",
        "is_heard",
        "is_moving",
        "is_over",
        "is_paused",
        "lane",
        "mode",
        "takes_chunks",
    )

    def __init__(self, relay: "Relay", claim: Claim, lane: Lane) -> None:
        self._relay = relay
        self._exchange = relay.exchange
        self.claim = claim
        self.lane = lane
        self.mode: Mode = _WHOLE
        self.is_over = False
        self.is_heard = True  # something came since the last failed probe of the instance
        self.is_moving = False  # something came since Doubts looked last; has_begun: ever
        self.has_begun = False
        self.is_paused = False  # the client reads too slowly
        self._call: Call | None = None
        self._answer: AnswerHead | None = None
        self._status = 0
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self.takes_chunks = False
        self._cutter: EventCutter | None = None
        self._has_partial = False  # it holds the beginning of an event
        self._watch: StreamWatch | None = None
        self._assembly: Assembly | None = None
        self._hides = False  # reports of progress that the client did not ask for

    def start(self, request: bytes) -> None:
        """Send the request."""
        call = self.lane.pool.submit(request, self)
        if not self.is_over:
            self._call = call

    def stop(self, outcome: Outcome, witness: bytes = b"") -> None:
        """End it, whatever it does now: the engine's connection is cut, the slot given back."""
        self.is_over = True
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        claim = self.claim
        if claim.bill is not None and claim.answer_tokens is None and (used := self.used()):
            claim.answer_tokens = used.completion  # it stood in a queue, and others may still
        if self._relay.ticket is not None:
            self._relay.ticket.ending(outcome)
        claim.release(outcome, witness=witness)

    def recall(self) -> Claim:
        """Take it back, as if it had not been made: the engine's connection is cut, the slot stays lent."""
        self.is_over = True
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._relay.attempts -= 1
        self._relay.timeline.recalled()
        return self.claim

    @property
    def events(self) -> int:
        """The pieces of a stream that were forwarded, also by those before it that it goes on from."""
        said = self._relay.said
        here = max(0, self._watch.events) if self._watch is not None else 0
        return here if said is None else said.tokens_before + here

    @property
    def has_said_all(self) -> bool:
        """Is of a stream only the end of its framing missing?"""
        return self._watch is not None and self._watch.is_complete

    def used(self) -> Used | None:
        """The tokens of what was forwarded as it came; None when nothing was."""
        relay = self._relay
        if self._watch is not None:
            used = self._watch.told() or self._watch.counted(relay.job.prompt_tokens)
            return used if relay.said is None else relay.said.used(used)
        if relay.said is not None:  # it goes on, and has said nothing yet
            return relay.said.used(Used(relay.job.prompt_tokens, 0, is_estimated=True))
        if self.mode is not _PASS:
            return None
        head, tail = self._parts
        return find_usage(tail) or find_usage(head) or Used(0, 0, is_estimated=True)

    def assembled(self) -> Used | None:
        """The tokens of all choices of an answer that was put together; its body tells the first's."""
        if self._assembly is None or len(self._assembly.usages) < 2:
            return None
        parts = [
            used for one in self._assembly.usages if (used := read_usage(dict(one))) is not None
        ]
        return together(parts, self._relay.job.body.get("n") or 1) if parts else None

    def pause(self) -> None:
        self.is_paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self.is_paused = False
        if self._call is not None:
            self._call.resume()

    # Sink

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        answer = self._answer = self.lane.read_head(headers)
        self._status = status
        self._length = length
        relay = self._relay
        if answer.instance and answer.instance != self.lane.identity:
            relay.attempt_failed(Failure.WRONG_INSTANCE)
        elif status >= 400:
            if status == MISDIRECTED:
                relay.attempt_failed(Failure.WRONG_INSTANCE)
            elif answer.is_lost:
                relay.attempt_failed(Failure.LOST)
            self.mode = _ERROR
        elif status != 200 or not answer.is_plain:
            relay.attempt_failed(Failure.UNUSABLE)
        elif relay.job.stream and answer.is_events:
            self.mode = _EVENTS
            self._cutter = EventCutter()
            job, dialect = relay.job, self.lane.dialect
            self._watch = StreamWatch(
                job.choices, copies=job.body.get("n") or 1, hides_usage=job.hides_usage(dialect)
            )
            self._hides = dialect.reports_progress and not wants_progress(job.body)
        elif answer.is_events and self.lane.dialect.reports_progress:
            self.mode = _ASSEMBLE
            self._cutter = EventCutter()
            self._assembly = Assembly(relay.job.route, relay.job.body)
        elif relay.job.stream or not answer.is_json:
            relay.attempt_failed(Failure.UNUSABLE)

    def on_data(self, data: bytes) -> None:
        self.is_heard = self.is_moving = True
        if self.mode is _EVENTS:
            self._take_events(data)
            return
        if self.mode is _PASS:
            tail = self._parts
            tail[1] = (
                data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (tail[1] + data)[-TAIL_BYTES:]
            )
            self._relay.exchange.write(data)
            return
        if self.mode is _ASSEMBLE:
            _assemble(self, data)
            return
        self._size += len(data)
        self._parts.append(data)
        if self.mode is _ERROR:
            if self._size > ERROR_BYTES:
                self._relay.attempt_failed(Failure.UNUSABLE)
        elif self._size > WHOLE_BYTES:
            self._pass_on()

    def on_chunks(self, frames: bytes, count: int) -> bool:
        self.is_heard = self.is_moving = True
        watch = self._watch
        if watch is None or self._has_partial or not watch.is_plain(frames):
            return False
        if self._hides and PROGRESS in frames:
            return False
        if not self._exchange.pass_on(frames):
            return False
        watch.events += count  # a chunk is an event, near enough for what nobody else counts
        return True

    def way(self) -> Way | None:
        watch, client = self._watch, self._exchange.way()
        if client is None or watch is None or self._has_partial or self.is_paused:
            return None
        marks = watch.marks()
        if not marks:
            return None
        if self._hides:
            marks = (*marks, PROGRESS)
        head, tail = watch.frame
        return Way(client, self._exchange.pass_on, head, tail, marks)

    def on_passed(self, count: int) -> None:
        self.is_heard = self.is_moving = True
        if self._watch is not None:
            self._watch.events += count

    def catch_up(self) -> None:
        """Note what went past us until now."""
        if self._call is not None:
            self._call.catch_up()

    def on_end(self) -> None:
        if self.is_over:
            return
        self._call = None
        mode = self.mode
        if mode is _WHOLE:
            self._end_whole()
        elif mode is _EVENTS:
            self._end_events()
        elif mode is _PASS:
            self._relay.succeeded()
        elif mode is _ERROR:
            self._end_error()
        else:
            _end_assembly(self)

    def on_lost(self, error: UpstreamLost) -> None:
        if self.is_over:
            return
        self._call = None
        if self.has_said_all:
            self._end_events()
            return
        if self._assembly is not None and self._assembly.is_complete:
            _end_assembly(self)
            return
        never_sent = error.refused or not error.sent_bytes
        self._relay.attempt_failed(Failure.REFUSED if never_sent else Failure.LOST)

    # Private

    def _take_events(self, data: bytes) -> None:
        assert self._cutter is not None
        assert self._watch is not None
        try:
            events = self._cutter.feed(data)
        except UpstreamError:
            self._relay.attempt_failed(Failure.UNUSABLE)
            return
        self._has_partial = self._cutter.has_partial
        if not events:
            return
        relay = self._relay
        if self._hides and PROGRESS in events:
            events = without_progress(events)
        events = self._watch.see(events)
        if relay.said is not None:
            events = relay.said.see(events)
        if events:
            if not relay.is_started:
                relay.start(STREAM_LINES, None)
                self.takes_chunks = relay.said is None
            relay.exchange.write(events)

    def _end_events(self) -> None:
        relay, watch = self._relay, self._watch
        if watch is not None and watch.is_complete:
            relay.succeeded()
        elif watch is not None and watch.is_failed and relay.is_started:
            relay.ended_by_engine()
        else:
            relay.attempt_failed(Failure.UNUSABLE)

    def _pass_on(self) -> None:
        """The answer is too long to hold back: send what there is, and the rest as it comes."""
        self.mode = _PASS
        self._relay.start(JSON_LINES, self._length)
        body = b"".join(self._parts)
        self._relay.exchange.write(body)
        self._parts = [body[:HEAD_BYTES], body[-TAIL_BYTES:]]  # where the usage is told

    def _end_whole(self) -> None:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        is_whole = body.startswith(b"{") and body.rstrip().endswith(b"}")
        if not is_whole or body.startswith(b'{"error"'):
            self._relay.attempt_failed(Failure.UNUSABLE)
        else:
            self._relay.answered(200, body, JSON_LINES, _OK)

    def _end_error(self) -> None:
        """The engine refused. Its decision is forwarded, unless it only said `not now`."""
        body, status = b"".join(self._parts), self._status
        answer = self._answer
        if status in (429, 503) and answer is not None and answer.retry_after.isdigit():
            self.claim.back_off_s = float(answer.retry_after[:6])
        if status in (429, 503) or (status in (502, 504) and engine_error(body) is None):
            self._relay.attempt_failed(Failure.UNAVAILABLE)
            return
        status, body = shape_error(status, body)
        lines = JSON_LINES if status < 500 else REFUSED_LINES
        outcome = Outcome.CLIENT_ERROR if self._status < 500 else Outcome.UPSTREAM_STATUS
        self._relay.answered(status, body, lines, outcome)


# Private


def _assemble(attempt: Attempt, data: bytes) -> None:
    assert attempt._cutter is not None
    assert attempt._assembly is not None
    try:
        events = attempt._cutter.feed(data)
        if events:
            attempt._assembly.take(events)
            if attempt._relay.ticket is not None and PROGRESS not in events:
                attempt._relay.ticket.landed()
    except UpstreamError:
        attempt._relay.attempt_failed(Failure.UNUSABLE)


def _end_assembly(attempt: Attempt) -> None:
    assembly = attempt._assembly
    assert assembly is not None
    if assembly.is_complete:
        attempt._relay.answered(200, assembly.body(), JSON_LINES, _OK)
    elif assembly.error is not None:
        attempt._status = assembly.status
        attempt._parts = [assembly.error_body()]
        attempt._end_error()
    else:
        attempt._relay.attempt_failed(Failure.UNUSABLE)
