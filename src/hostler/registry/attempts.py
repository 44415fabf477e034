"""Attempts: who has failed too often lately. A bucket an address, so that nobody is held up for another.

No secret could be tried out, for each has 256 bits: this keeps the work and the log lines bounded.
"""

from collections import OrderedDict
from collections.abc import Callable

from hostler.core.errors import RateLimitExceeded
from hostler.wire.crowd import client_network

MOST, EVERY_S = 10, 6.0  # failures at once, and one more each so many seconds
ADDRESSES = 1024  # that are remembered; the one heard longest ago goes


class Attempts:
    """Failures by client address; an IPv6 network of 64 bits counts as one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at_s: OrderedDict[str, float] = OrderedDict()  # when its bucket is full again

    def check(self, client: str) -> None:
        """Return while this client may try.

        Raises:
            RateLimitExceeded
        """
        wait_s = self._full_at_s.get(client_network(client), 0.0) - self._clock()
        over_s = wait_s - (MOST - 1) * EVERY_S
        if over_s > 0:
            raise RateLimitExceeded(
                "too many failed tries from this address", retry_after_s=int(over_s) + 1
            )

    def failed(self, client: str) -> None:
        """Count one more failure."""
        network, now_s = client_network(client), self._clock()
        full_at_s = max(self._full_at_s.pop(network, now_s), now_s) + EVERY_S
        self._full_at_s[network] = full_at_s
        if len(self._full_at_s) > ADDRESSES:
            self._full_at_s.popitem(last=False)
