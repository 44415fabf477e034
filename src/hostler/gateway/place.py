"""Place: where one request waits for a slot of its model, for a limited time."""

import asyncio
from typing import TYPE_CHECKING

from hostler.core.errors import HostlerError
from hostler.routing.claim import Claim
from hostler.routing.queue import Done, Waiter
from hostler.routing.router import Router

if TYPE_CHECKING:
    from hostler.gateway.relay import Relay


class Place:
    """A place in the queue. `done` is called once, with a claim or an error; perhaps before this is made."""

    __slots__ = ("_done", "_timer", "_waiter")

    def __init__(
        self, router: Router, relay: "Relay", exclude: frozenset[str], wait_s: float, done: Done
    ) -> None:
        """Stand in the queue. Raises as `Router.enqueue`."""
        self._done: Done | None = done
        self._timer: asyncio.TimerHandle | None = None
        job = relay.job
        self._waiter: Waiter = router.enqueue(
            job.model.name, job, exclude=exclude, done=self._told, is_owed=relay.is_owed
        )
        if self.is_taken:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._waiter.expire)

    @property
    def is_taken(self) -> bool:
        """Does it still wait here?"""
        return self._done is not None

    def leave(self) -> None:
        """Wait no longer; `done` is not called."""
        self._done = None
        self._stop_timer()
        self._waiter.cancel()

    # Private

    def _told(self, result: Claim | HostlerError) -> None:
        done, self._done = self._done, None
        self._stop_timer()
        if done is not None:
            done(result)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
