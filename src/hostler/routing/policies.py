"""Which instance serves a request: one small class a policy, no I/O, no clock.

Here: those that look at loads and turns only. Not here: session.py, prefix.py, and classes of an
operator's own (policy.py, own.py).
"""

from collections.abc import Sequence, Set
from heapq import heapify, heappop, heappush
from random import Random

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.places import Places, next_bit


class Loads:
    """What instances work on now, by instance id; one that is absent does nothing.

    prompt_tokens: counted only for policies that want it (`wants_tokens`).
    """

    __slots__ = ("in_flight", "prompt_tokens")

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.prompt_tokens: dict[str, int] = {}


class Policy:
    """What the policies that come with Hostler derive from. A router asks them by places (places.py).

    To everybody else it is a RoutingPolicy by its shape (policy.py): `choose`, `update`, `forget`.
    wants_list: it is asked by `choose` alone.
    """

    name = "own"
    why = ""
    wants_tokens = False
    wants_list = False
    learns = False
    problem = ""

    def __init__(self) -> None:
        self.places = Places()

    def pick(self, among: int, ask: Ask) -> int:
        """Return a place of this mask, which is never empty."""
        raise NotImplementedError

    def changed(self, place: int) -> None:
        """Whether this one is ready, or what is known of it, is other than before."""

    def noted(self, place: int, tokens: int) -> None:
        """So many prompt tokens are in flight there now (`wants_tokens`)."""

    def gone(self, mask: int) -> int:
        """These places are left for good. Returns all those that nothing is known of here any more."""
        return mask

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        """The request goes there (`learns`)."""

    # As a RoutingPolicy

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        """Pick one of `ready`."""
        places = self.places
        if any(places.place(one.instance_id) < 0 for one in ready):
            self.update(ready)
        for one in ready:
            place = places.place(one.instance_id)
            places.note(place, loads.in_flight.get(one.instance_id, 0), one.concurrency)
            if self.wants_tokens:
                self.noted(place, loads.prompt_tokens.get(one.instance_id, 0))
        return places.at(self.pick(places.mask(one.instance_id for one in ready), ask))

    def update(self, ready: Sequence[InstanceView]) -> None:
        """These are the ready instances from now on."""
        places, known = self.places, {one.instance_id for one in ready}
        for gone in [one for one in places.everyone() if one.instance_id not in known]:
            place = places.drop(gone.instance_id)
            self.changed(place)
            places.reuse(self.gone(1 << place))
        for one in ready:
            place = places.place(one.instance_id)
            load = places.load(place) if place >= 0 else 0
            self.changed(places.put(one, load))

    def forget(self, gone: Set[str]) -> None:
        """The instances with these ids are no more."""


class LeastInFlight(Policy):
    """The instance with the fewest requests in flight; ties take turns.

    When instances have different numbers of slots, the one with the smallest share of them in use.
    """

    name = "least-in-flight"
    why = "least in flight"

    def pick(self, among: int, ask: Ask) -> int:
        return self.places.least(among)


class RoundRobin(Policy):
    """Each in its turn; one that is full when its turn comes is passed over."""

    name = "round-robin"
    why = "its turn"
    learns = True

    def __init__(self) -> None:
        super().__init__()
        self._last = -1

    def pick(self, among: int, ask: Ask) -> int:
        return next_bit(among, self._last)

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        self._last = self.places.place(chosen.instance_id)


class Weighted(Policy):
    """Shares in proportion to weights, spread evenly: among requests numbered 1, 2, 3 … an instance
    of weight w is due at the times 1/2w, 3/2w, 5/2w …, and whoever is due first is next.

    So in each unit of time every instance is chosen exactly w times. One that was full when it was
    due does not catch up later. An instance without a weight has as much as slots.
    """

    name = "weighted"
    learns = True

    def __init__(self, weights: Sequence[int] = ()) -> None:
        super().__init__()
        self._weights = tuple(weights)
        self._weight: dict[int, int] = {}
        self._turns: dict[int, int] = {}  # how often each was chosen
        self._due: dict[int, float] = {}
        self._late = 0  # those that are due by now
        self._later: list[
            tuple[float, int]
        ] = []  # a heap of the others; some are not true any more
        self._whys: dict[int, str] = {}
        self._now = 0.0

    def changed(self, place: int) -> None:
        self._late &= ~(1 << place)
        self._due.pop(place, None)
        if not self.places.ready >> place & 1:
            self._weight.pop(place, None)
            self._turns.pop(place, None)
            return
        one, weights = self.places.at(place), self._weights
        weight = weights[one.replica] if one.replica < len(weights) else one.concurrency
        self._weight[place] = weight
        self._whys[weight] = f"weight {weight}"
        self._turns.setdefault(place, int(self._now * weight + 0.5))
        self._await(place)

    def pick(self, among: int, ask: Ask) -> int:
        late = self._late & among
        place = next_bit(late, -1) if late else self._first_of(among)
        self.why = self._whys[self._weight[place]]
        return place

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        place = self.places.place(chosen.instance_id)
        if self._late >> place & 1:
            self._late ^= 1 << place
        self._now = now = max(self._due[place], self._now)
        passed = int(now * self._weight[place] - 0.5)  # turns that are over by now
        self._turns[place] = max(self._turns[place], passed) + 1
        self._await(place)
        later = self._later
        while later and later[0][0] <= now:
            due, place = heappop(later)
            if self._due.get(place) == due:
                self._late |= 1 << place

    # Private

    def _await(self, place: int) -> None:
        due = (2 * self._turns[place] + 1) / (2 * self._weight[place])
        self._due[place] = due
        if due <= self._now:
            self._late |= 1 << place
            return
        heappush(self._later, (due, place))
        if len(self._later) > 2 * len(self._due) + 64:
            self._later = [(at, one) for one, at in self._due.items() if at > self._now]
            heapify(self._later)

    def _first_of(self, among: int) -> int:
        """Who of these is due first, if none is late."""
        later, passed = self._later, []
        while self._due.get(later[0][1]) != later[0][0] or not among >> later[0][1] & 1:
            first = heappop(later)
            if self._due.get(first[1]) == first[0]:
                passed.append(first)  # full, or left out now
        place = later[0][1]
        for first in passed:
            heappush(later, first)
        return place


class LeastTokens(Policy):
    """The instance with the fewest prompt tokens in flight; then the fewest requests, in turns."""

    name = "least-tokens"
    why = "least tokens"
    wants_tokens = True

    def __init__(self) -> None:
        super().__init__()
        self._tokens: dict[int, int] = {}  # by place, of those that read
        self._reading = 0
        self._readers: dict[int, int] = {}  # who reads so many tokens
        self._numbers: list[int] = []  # a heap of these; some are nobody's any more

    def noted(self, place: int, tokens: int) -> None:
        bit, before = 1 << place, self._tokens.pop(place, 0)
        if before:
            self._reading ^= bit
            if others := self._readers.pop(before) ^ bit:
                self._readers[before] = others
        if tokens:
            self._tokens[place] = tokens
            self._reading |= bit
            if tokens in self._readers:
                self._readers[tokens] |= bit
                return
            self._readers[tokens] = bit
            heappush(self._numbers, tokens)
            if len(self._numbers) > 2 * len(self._readers) + 64:
                self._numbers = sorted(self._readers)

    def gone(self, mask: int) -> int:
        left = mask & self._reading
        while left:
            place = next_bit(left, -1)
            left ^= 1 << place
            self.noted(place, 0)
        return mask

    def pick(self, among: int, ask: Ask) -> int:
        idle = among & ~self._reading
        return self.places.least(idle or self._fewest(among))

    # Private

    def _fewest(self, among: int) -> int:
        """Those of a mask that read the fewest tokens, if all of them read."""
        numbers = self._numbers
        passed: list[int] = []
        while not (found := self._readers.get(numbers[0], 0) & among):
            first = heappop(numbers)
            if first in self._readers and first not in passed[-1:]:
                passed.append(first)
        for first in passed:
            heappush(numbers, first)
        return found


class RandomTwo(Policy):
    """Of two picked by chance, the one with the smaller share of its slots in use."""

    name = "random-two"
    why = "least of two"

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._random = Random(seed).random

    def pick(self, among: int, ask: Ask) -> int:
        places = self.places
        one = places.by_chance(among, self._random)
        others = among & ~(1 << one)
        if not others:
            return one
        two = places.by_chance(others, self._random)
        return two if places.share(two) < places.share(one) else one
