"""WallClock: the date, for what expires on one. Leases and timeouts are measured by time.monotonic."""

import time
from collections.abc import Callable

from hostler.app.telemetry import logger

log = logger(__name__)

TOLD_S = 300.0


class WallClock:
    """Seconds since 1970. A jump back by more than five minutes is written to the log.

    A key that had expired before such a jump may be valid again after it: somebody should know.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._latest_s = clock()

    def __call__(self) -> float:
        now_s = self._clock()
        if now_s < self._latest_s - TOLD_S:
            log.warning("clock.went_back", by_s=round(self._latest_s - now_s))
            self._latest_s = now_s
        self._latest_s = max(self._latest_s, now_s)
        return now_s
