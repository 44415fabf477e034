"""Relays: the requests of one gateway that are under way, and what they share."""

from collections.abc import Callable
from time import monotonic

from hostler.app.config import GatewayConfig
from hostler.core.errors import HostlerError, RequestQuarantined, UpstreamTimeout
from hostler.gateway.job import Job
from hostler.gateway.lanes import Lanes
from hostler.gateway.metrics import GatewayMetrics
from hostler.gateway.relay import BUDGETED, Relay
from hostler.gateway.timeline import Ring
from hostler.routing.quarantine import Quarantine
from hostler.routing.router import Router
from hostler.routing.verdict import Failure
from hostler.wire.exchange import Exchange

RETRY_SHARE, RETRIES_FREE = 0.2, 3


class Relays:
    """What all relays of one gateway share, and which of them are under way."""

    def __init__(
        self,
        config: GatewayConfig,
        router: Router,
        lanes: Lanes,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.config = config
        self.router = router
        self.lanes = lanes
        self.metrics = metrics
        self.clock = clock
        self.quarantine = Quarantine(
            lost_max=config.lost_max, hold_s=config.quarantine_s, clock=clock
        )
        self.under_way: dict[Relay, None] = {}  # in the order they began
        self.ring = Ring()
        self.retrying = 0  # of them, how many are in an attempt that counts against the budget

    def begin(self, exchange: Exchange, job: Job) -> None:
        """Serve a judged request.

        Raises:
            RequestQuarantined: this request killed workers a moment ago.
        """
        if self.quarantine:
            left_s = self.quarantine.refused_for_s(job.fingerprint)
            if left_s:
                raise RequestQuarantined(
                    "this request was on board when workers of the model died, so it is refused "
                    f"for {left_s:.0f} s more; change it, or ask the operator"
                )
        relay = Relay(self, exchange, job)
        self.under_way[relay] = None
        relay.begin()

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

    def may_retry(self, failure: Failure) -> bool:
        """Is another attempt within the budget? (F50; the share and the floor are Envoy's)

        Only for engines that answered: when all say `not now`, trying each triples the load. A
        worker that died takes its requests' load with it. The share is of those on their first
        try: a share of all would make attempts 1.25 times the requests, not 1.2.
        """
        if failure not in BUDGETED:
            return True
        first_tries = len(self.under_way) - self.retrying
        return self.retrying < max(RETRIES_FREE, RETRY_SHARE * first_tries)

    def note_silence(self, instance_id: str) -> None:
        """A probe of this instance failed. Once it counts as dead, what hears nothing is cut.

        An answer that still moves is left alone: a probe may fail for want of a CPU. (F03, F04)
        """
        is_down = self.router.health.is_down(instance_id)
        for relay in tuple(self.under_way):
            relay.note_silence(instance_id, is_down)
