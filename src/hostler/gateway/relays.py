"""Relays: the requests of one gateway that are under way, and what they share."""

import asyncio
import re
from collections.abc import Callable
from time import monotonic

from hostler.app.config import GatewayConfig
from hostler.app.telemetry import logger
from hostler.core.errors import BadRequest, HostlerError, RequestQuarantined, UpstreamTimeout
from hostler.gateway.accounts import Accounts
from hostler.gateway.detours import Detours
from hostler.gateway.flights import Flights
from hostler.gateway.job import Job
from hostler.gateway.lanes import Lanes
from hostler.gateway.metrics import GatewayMetrics
from hostler.gateway.relay import Relay
from hostler.gateway.spans import Spans
from hostler.gateway.timeline import Ring, Timeline
from hostler.gateway.trace import Trace, read_trace
from hostler.routing.quarantine import Quarantine
from hostler.routing.router import Router
from hostler.routing.verdict import Failure
from hostler.wire.exchange import Exchange

access = logger("hostler.gateway.access")

RETRY_SHARE, RETRIES_FREE, RETRIES_SAVED = 0.2, 3, 10.0


class Relays:
    """What all relays of one gateway share, and which of them are under way."""

    def __init__(
        self,
        config: GatewayConfig,
        router: Router,
        lanes: Lanes,
        metrics: GatewayMetrics,
        accounts: Accounts,
        detours: Detours,
        flights: Flights,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.config = config
        self.router = router
        self.lanes = lanes
        self.metrics = metrics
        self.accounts = accounts
        self.detours = detours
        self.flights = flights
        self.clock = clock
        self.quarantine = Quarantine(
            lost_max=config.lost_max, hold_s=config.quarantine_s, clock=clock
        )
        self.under_way: dict[Relay, None] = {}  # in the order they began
        self.deadlines: dict[Relay, asyncio.TimerHandle] = {}  # of those that asked for one
        self._kept_alive_s = clock()  # when comments were sent last
        self.ring = Ring(config.timeline_requests)
        self.spans: Spans | None = None  # where they go, if anywhere
        self.retrying = 0  # of them, how many are in an attempt that counts against the budget
        self._begun = self._begun_before = 0
        self._saved = RETRIES_SAVED

    def begin(self, exchange: Exchange, job: Job) -> None:
        """Serve a judged request.

        Raises:
            RequestQuarantined: this request killed workers a moment ago.
            BadRequest: its `x-request-timeout` is none.
        """
        if self.quarantine:
            left_s = self.quarantine.refused_for_s(job.fingerprint)
            if left_s:
                raise RequestQuarantined(
                    "this request was on board when workers of the model died, so it is refused "
                    f"for {left_s:.0f} s more; change it, or ask the operator"
                )
        asked = exchange.request.fields.get(b"x-request-timeout")
        timeout_s = read_timeout(asked, self.config.request_timeout_s) if asked is not None else 0.0
        trace: Trace | None = None
        if self.spans is not None:
            trace = self.spans.begin(exchange.request.fields)
        elif b"traceparent" in exchange.request.fields:
            trace = read_trace(exchange.request.fields)
        if trace is not None:
            job.trace_lines = trace.lines()
        relay = Relay(self, exchange, job)
        if self.spans is not None:
            relay.timeline.trace = trace
        self.under_way[relay] = None
        self._begun += 1
        if timeout_s:
            loop = asyncio.get_running_loop()
            self.deadlines[relay] = loop.call_later(timeout_s, relay.end, UpstreamTimeout())
        relay.begin()

    def forget_deadline(self, relay: Relay) -> None:
        """A relay has ended: the deadline it asked for means nothing any more."""
        timer = self.deadlines.pop(relay, None)
        if timer is not None:
            timer.cancel()

    def keep_alive(self) -> None:
        """Send a comment on streams that wait for their first token: one each `keep_alive_s` (F63)."""
        every_s, since_s, now_s = self.config.keep_alive_s, self._kept_alive_s, self.clock()
        self._kept_alive_s = now_s
        if not every_s:
            return
        for relay in tuple(self.under_way):
            age_s = now_s - relay.began_s
            if age_s < every_s:
                return
            if (
                relay.job.stream
                and not relay.is_started
                and age_s // every_s > (since_s - relay.began_s) // every_s
            ):
                relay.keep_alive()

    def end_expired(self) -> None:
        """End the relays whose deadline has passed."""
        latest_s = self.clock() - self.config.request_timeout_s
        while self.under_way:
            oldest = next(iter(self.under_way))
            if oldest.began_s > latest_s:
                return
            oldest.end(UpstreamTimeout())
            self.under_way.pop(oldest, None)

    def end_all(self, error: HostlerError) -> None:
        """End every relay under way: the drain's time is over (F56)."""
        for relay in tuple(self.under_way):
            relay.end(error)

    def note_end(self, timeline: Timeline) -> None:
        """A request has ended: it is remembered, counted and logged."""
        self.ring.add(timeline)
        used, is_bad = timeline.used, not timeline.is_ok
        self.accounts.add(timeline.key_id, timeline.model, used, failed=is_bad)
        self.metrics.finished(timeline)
        access.often("request", timeline)
        if self.spans is not None and timeline.trace is not None:
            self.spans.add(timeline, timeline.trace)

    def spend(self, relay: Relay) -> bool:
        """Take another attempt from the budget, for as long as the request lives; False: it is spent.

        (F50; the share and the floor are Envoy's.) The share is of those on their first try: a share
        of all would make attempts 1.25 times the requests, not 1.2. What earlier requests did not
        use is saved, a little, for an instance that fails all it has at once; every attempt spends
        of that, so both together allow no more.
        """
        new, self._begun_before = self._begun - self._begun_before, self._begun
        self._saved = min(RETRIES_SAVED, self._saved + RETRY_SHARE * new)
        first_tries = len(self.under_way) - self.retrying
        if self._saved < 1 and self.retrying >= max(RETRIES_FREE, RETRY_SHARE * first_tries):
            return False
        self._saved = max(0.0, self._saved - 1)
        if not relay.is_budgeted:
            relay.is_budgeted = True
            self.retrying += 1
        return True

    def note_silence(self, instance_id: str, is_down: bool) -> None:
        """A probe of this instance failed. Once it counts as dead, what hears nothing is cut.

        An answer that still moves is left alone: a probe may fail for want of a CPU. (F03, F04)
        """
        for relay in tuple(self.under_way):
            relay.note_silence(instance_id, is_down)

    def cut(self, instance_id: str) -> None:
        """This instance is stuck: its streams end, what has got no byte goes elsewhere (F05)."""
        for relay in tuple(self.under_way):
            attempt = relay.attempt
            if attempt is not None and attempt.claim.instance.instance_id == instance_id:
                relay.attempt_failed(Failure.LOST)


def read_timeout(asked: bytes, most_s: float) -> float:
    """Return the seconds of an `x-request-timeout` header (F64).

    Raises:
        BadRequest: not a plain number above 0, or more than the server allows.
    """
    seconds = float(asked) if _SECONDS.fullmatch(asked) else 0.0
    if not 0 < seconds <= most_s:
        raise BadRequest(
            f"x-request-timeout: need seconds above 0 and up to {most_s:g}, like 30 or 2.5",
            param="x-request-timeout",
        )
    return seconds


_SECONDS = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")
