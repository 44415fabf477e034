"""Who waits for a slot of a model, and who is next."""

from collections import deque
from collections.abc import Callable, Iterator, Set
from typing import Protocol

from hostler.core.errors import HostlerError
from hostler.routing.ask import Ask
from hostler.routing.claim import Claim

Done = Callable[[Claim | HostlerError], None]


class Queued(Protocol):
    """What a waiter needs of the place where it waits."""

    queue: "Queue"

    def too_late(self) -> HostlerError: ...


class Waiter:
    """A request in the queue of a model. `done` is called once: with a claim or an error."""

    __slots__ = ("_place", "ask", "done", "exclude")

    def __init__(self, place: Queued, ask: Ask, exclude: Set[str], done: Done) -> None:
        self._place = place
        self.ask = ask
        self.exclude = exclude
        self.done = done

    def cancel(self) -> None:
        """Leave the queue without a call of `done`."""
        self._place.queue.remove(self)

    def expire(self) -> None:
        """Leave the queue because the wait was too long."""
        if self._place.queue.remove(self):
            self.done(self._place.too_late())


class Queue:
    """The waiters of one model, in the order of their turns."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._waiters

    def __iter__(self) -> Iterator[Waiter]:
        """Those who wait now, whose turn it is first; the queue may change meanwhile."""
        return iter(tuple(self._waiters))

    def add(self, waiter: Waiter) -> None:
        self._waiters.append(waiter)

    def remove(self, waiter: Waiter) -> bool:
        """Take one out, wherever it stands; False when it is not there."""
        if waiter not in self._waiters:
            return False
        self._waiters.remove(waiter)
        return True
