"""Which instance serves a request: one small class a policy, no I/O, no clock.

Here: those that look at loads and turns only. Not here: session.py, prefix.py, and classes of an
operator's own (policy.py, own.py).
"""

from bisect import bisect_right
from collections.abc import Sequence, Set
from random import Random

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask


class Loads:
    """What instances work on now, by instance id; one that is absent does nothing.

    prompt_tokens: counted only for policies that want it (`wants_tokens`).
    """

    __slots__ = ("in_flight", "prompt_tokens")

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.prompt_tokens: dict[str, int] = {}


class Policy:
    """What the policies that come with Hostler derive from: a RoutingPolicy by its shape (policy.py)."""

    name = "own"
    why = ""
    wants_tokens = False
    learns = False
    problem = ""

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        """Pick one of `ready`."""
        raise NotImplementedError

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        """The request goes there."""

    def update(self, ready: Sequence[InstanceView]) -> None:
        """These are the model's ready instances from now on."""

    def forget(self, gone: Set[str]) -> None:
        """The instances with these ids are no more."""


class LeastInFlight(Policy):
    """The instance with the fewest requests in flight; ties take turns.

    When instances have different numbers of slots, the one with the smallest share of them in use.
    """

    name = "least-in-flight"
    why = "least in flight"

    def __init__(self) -> None:
        self._turn = 0
        self._is_uneven = False

    def update(self, ready: Sequence[InstanceView]) -> None:
        self._is_uneven = len({i.concurrency for i in ready}) > 1

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        count = len(ready)
        if count == 1:
            return ready[0]
        load = loads.in_flight
        self._turn = turn = (self._turn + 1) % count
        is_uneven = self._is_uneven
        best, best_load = ready[turn], share(ready[turn], loads, is_uneven)
        for step in range(1, count):
            if not best_load:
                break
            other = ready[(turn + step) % count]
            other_load = float(load.get(other.instance_id, 0))
            if is_uneven:
                other_load /= other.concurrency
            if other_load < best_load:
                best, best_load = other, other_load
        return best


class RoundRobin(Policy):
    """Each in its turn; one that is full when its turn comes is passed over."""

    name = "round-robin"
    why = "its turn"
    learns = True

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._last = -1

    def update(self, ready: Sequence[InstanceView]) -> None:
        last = next((i for i, place in self._places.items() if place == self._last), "")
        self._places = {i.instance_id: place for place, i in enumerate(ready)}
        self._last = self._places.get(last, self._last)

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        found = bisect_right(ready, self._last, key=self._place)
        return ready[found if found < len(ready) else 0]

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        self._last = self._place(chosen)

    def _place(self, instance: InstanceView) -> int:
        return self._places.get(instance.instance_id, 0)


class Weighted(Policy):
    """Shares in proportion to weights, spread evenly: among requests numbered 1, 2, 3 … an instance
    of weight w is due at the times 1/2w, 3/2w, 5/2w …, and whoever is due first is next.

    So in each unit of time every instance is chosen exactly w times. One that was full when it was
    due does not catch up later. An instance without a weight has as much as slots.
    """

    name = "weighted"
    learns = True

    def __init__(self, weights: Sequence[int] = ()) -> None:
        self._weights = tuple(weights)
        self._weight: dict[str, int] = {}
        self._whys: dict[int, str] = {}
        self._turns: dict[str, int] = {}  # how often each was chosen
        self._now = 0.0

    def update(self, ready: Sequence[InstanceView]) -> None:
        weights = self._weights
        self._weight = {
            i.instance_id: weights[i.replica] if i.replica < len(weights) else i.concurrency
            for i in ready
        }
        self._whys = {weight: f"weight {weight}" for weight in self._weight.values()}
        self._turns = {
            i: self._turns.get(i, int(self._now * weight + 0.5))
            for i, weight in self._weight.items()
        }

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        best = min(ready, key=self._due_at)
        self.why = self._whys[self._weight[best.instance_id]]
        return best

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        instance_id = chosen.instance_id
        self._now = now = self._due_at(chosen)
        passed = int(now * self._weight[instance_id] - 0.5)  # turns that are over by now
        self._turns[instance_id] = max(self._turns[instance_id], passed) + 1

    def _due_at(self, instance: InstanceView) -> float:
        instance_id = instance.instance_id
        due = (2 * self._turns[instance_id] + 1) / (2 * self._weight[instance_id])
        return max(due, self._now)


class LeastTokens(Policy):
    """The instance with the fewest prompt tokens in flight; then the fewest requests, in turns."""

    name = "least-tokens"
    why = "least tokens"
    wants_tokens = True

    def __init__(self) -> None:
        self._least = LeastInFlight()

    def update(self, ready: Sequence[InstanceView]) -> None:
        self._least.update(ready)

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        if len(ready) == 1:
            return ready[0]
        tokens = loads.prompt_tokens
        if tokens:
            counts = [tokens.get(i.instance_id, 0) for i in ready]
            fewest = min(counts)
            ready = [i for i, count in zip(ready, counts, strict=True) if count == fewest]
        return self._least.choose(ready, loads, ask)


class RandomTwo(Policy):
    """Of two picked by chance, the one with the smaller share of its slots in use."""

    name = "random-two"
    why = "least of two"

    def __init__(self, seed: int | None = None) -> None:
        self._random = Random(seed).random

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        count = len(ready)
        if count == 1:
            return ready[0]
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        one, two = ready[first], ready[second + (second >= first)]
        return two if share(two, loads, True) < share(one, loads, True) else one


def share(instance: InstanceView, loads: Loads, of_slots: bool) -> float:
    """How busy an instance is: its requests in flight, or the share of its slots that they use."""
    in_flight = float(loads.in_flight.get(instance.instance_id, 0))
    return in_flight / instance.concurrency if of_slots else in_flight
