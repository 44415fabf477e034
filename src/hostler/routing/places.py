"""Places: the instances of one model as bits of numbers: who is free or least busy is found without a walk.

An instance keeps its place as long as it is known. A set of instances is a number (a *mask*): with 10,000
of them 1.3 KB, and the next bit of it is found in a fraction of a microsecond.
"""

from collections.abc import Callable, Iterable

from hostler.core.lifecycle import State
from hostler.core.snapshot import InstanceView

_TRIES = 16  # to hit a set bit by chance, before bits are counted
_LEVELS_MAX = 4096  # steps of busyness that are told apart when slots differ


class Places:
    """Who stands where, how busy each one is, and who has a slot left.

    ready: those in state ready. free: those of them with a free slot. count: how many are ready.
    slots: of all the ready ones. turn: the place that was chosen last, of those that take turns.
    limit, elsewhere: by place: how many requests of ours it may have; how many other machines have there.
    """

    __slots__ = (
        "_at",
        "_is_uneven",
        "_levels",
        "_load",
        "_lowest",
        "_place",
        "_reusable",
        "_sizes",
        "_steps",
        "count",
        "elsewhere",
        "free",
        "limit",
        "ready",
        "slots",
        "turn",
    )

    def __init__(self) -> None:
        self.ready = 0
        self.free = 0
        self.count = 0
        self.slots = 0
        self.turn = -1
        self._at: list[InstanceView | None] = []
        self._place: dict[str, int] = {}
        self._load: list[int] = []  # requests in flight, by place
        self.elsewhere: list[int] = []  # of them, those of other machines
        self.limit: list[int] = []  # how many may be ours
        self._reusable: list[int] = []
        self._levels: list[int] = [0]  # masks of the ready ones, the least busy first
        self._lowest = 0  # there is none below
        self._sizes: dict[int, int] = {}  # ready instances by their number of slots
        self._steps: dict[
            int, list[int]
        ] = {}  # level by load, for each number of slots, if they differ
        self._is_uneven = False

    # Who there is

    def __len__(self) -> int:
        return len(self._place)

    def place(self, instance_id: str) -> int:
        """Where an instance stands; -1: nowhere."""
        return self._place.get(instance_id, -1)

    def at(self, place: int) -> InstanceView:
        found = self._at[place]
        assert found is not None
        return found

    def put(self, instance: InstanceView, load: int, elsewhere: int = 0, limit: int = -1) -> int:
        """Take in an instance, or what is new of it. load: requests of ours that it has in flight.

        elsewhere: of other machines. limit: how many may be ours; -1: as many as it has slots.
        """
        place = self._place.get(instance.instance_id, -1)
        if place < 0:
            place = self._new_place()
            self._place[instance.instance_id] = place
        else:
            self._take_out(place)
        self._at[place] = instance
        self.elsewhere[place] = elsewhere
        self._load[place] = load + elsewhere
        self.limit[place] = limit if limit >= 0 else instance.concurrency
        if instance.state is State.READY:
            self._take_in(place, instance)
        return place

    def drop(self, instance_id: str) -> int:
        """Forget an instance; its place is nobody's until it is given to `reuse`. -1: it is not known."""
        place = self._place.pop(instance_id, -1)
        if place >= 0:
            self._take_out(place)
            self._at[place] = None
        return place

    def reuse(self, mask: int) -> None:
        """Nothing remembers these places any more."""
        while mask:
            place = _lowest_bit(mask)
            mask ^= 1 << place
            self._reusable.append(place)

    # How busy they are

    def note(self, place: int, load: int, slots: int) -> None:
        """So many requests of ours are in flight there now. slots: of this instance, as `put` was told."""
        bit, before = 1 << place, self._load[place]
        self._load[place] = after = load + self.elsewhere[place]
        if not self.ready & bit:
            return
        levels = self._levels
        if self._is_uneven:
            before, after = self._level(slots, before), self._level(slots, after)
        elif after >= len(levels):
            self._level(slots, after)
        levels[before] ^= bit
        levels[after] |= bit
        if after < self._lowest:
            self._lowest = after
        if load < self.limit[place]:
            self.free |= bit
        elif self.free & bit:
            self.free ^= bit

    def share_out(self, place: int, elsewhere: int, limit: int) -> None:
        """Other machines have so many requests there, and so many may be ours."""
        ours = self._load[place] - self.elsewhere[place]
        self.elsewhere[place], self.limit[place] = elsewhere, limit
        self.note(place, ours, self.at(place).concurrency)

    def load(self, place: int) -> int:
        """Requests in flight there, ours and those of other machines."""
        return self._load[place]

    def share(self, place: int) -> float:
        """The share of its slots that are in use."""
        return self._load[place] / max(1, self.at(place).concurrency)

    # Who is it to be

    def least(self, among: int) -> int:
        """The least busy one of a mask that is not empty; those equally busy take turns."""
        levels, level = self._levels, self._lowest
        while not levels[level]:
            level += 1
        self._lowest = level
        while not (found := levels[level] & among):
            level += 1
        self.turn = place = next_bit(found, self.turn)
        return place

    def least_share(self, among: int) -> float:
        """How busy the least busy one of a mask is. Nobody's turn is spent."""
        level = self._lowest
        while not (found := self._levels[level] & among):
            level += 1
        return self.share(_lowest_bit(found))

    def by_chance(self, among: int, random: Callable[[], float]) -> int:
        """One of a mask that is not empty, each as likely as the others."""
        span = len(self._at)
        for _ in range(_TRIES):
            place = int(random() * span)
            if among >> place & 1:
                return place
        return nth_bit(among, int(random() * among.bit_count()))

    def mask(self, instance_ids: Iterable[str]) -> int:
        """These instances, as far as they are known."""
        found = 0
        for instance_id in instance_ids:
            place = self._place.get(instance_id, -1)
            if place >= 0:
                found |= 1 << place
        return found

    def each(self, mask: int) -> list[InstanceView]:
        """The instances of a mask, in the order of their places. A walk, for those who want a list."""
        return [one for place, one in enumerate(self._at) if one is not None and mask >> place & 1]

    def everyone(self) -> list[InstanceView]:
        return [one for one in self._at if one is not None]

    # Private

    def _new_place(self) -> int:
        if self._reusable:
            return self._reusable.pop()
        self._at.append(None)
        self._load.append(0)
        self.elsewhere.append(0)
        self.limit.append(0)
        return len(self._at) - 1

    def _take_in(self, place: int, instance: InstanceView) -> None:
        slots = instance.concurrency
        self._sizes[slots] = self._sizes.get(slots, 0) + 1
        self.count += 1
        self.slots += slots
        if self._sizes[slots] == 1:
            self.ready |= 1 << place
            self._measure()
        else:
            bit = 1 << place
            self.ready |= bit
            level = self._level(slots, self._load[place])
            self._levels[level] |= bit
            self._lowest = min(self._lowest, level)
        if self._load[place] - self.elsewhere[place] < self.limit[place]:
            self.free |= 1 << place

    def _take_out(self, place: int) -> None:
        bit = 1 << place
        instance = self._at[place]
        if instance is None or not self.ready & bit:
            return
        slots = instance.concurrency
        self._levels[self._level(slots, self._load[place])] ^= bit
        self.ready ^= bit
        self.free &= ~bit
        self.count -= 1
        self.slots -= slots
        self._sizes[slots] -= 1
        if not self._sizes[slots]:
            del self._sizes[slots]
            self._measure()

    def _level(self, slots: int, load: int) -> int:
        """How busy one is, as an index of `_levels`."""
        if not self._is_uneven:
            level = load
            while len(self._levels) <= level:
                self._levels.append(0)
            return level
        steps = self._steps[slots]
        return steps[min(load, len(steps) - 1)]

    def _measure(self) -> None:
        """Tell steps of busyness apart anew: the numbers of slots are others."""
        self._is_uneven = len(self._sizes) > 1
        self._steps = {}
        self._levels, self._lowest = [0], 0
        if self._is_uneven:
            shares = sorted(
                {load / max(1, slots) for slots in self._sizes for load in _loads(slots)}
            )
            if len(shares) > _LEVELS_MAX:
                shares = [step / _LEVELS_MAX for step in range(_LEVELS_MAX + 1)]
            number = {share: level for level, share in enumerate(shares)}
            last = len(shares) - 1
            for slots in self._sizes:
                self._steps[slots] = [
                    number.get(load / max(1, slots), load * last // max(1, slots))
                    for load in _loads(slots)
                ]
            self._levels = [0] * len(shares)
        for place, one in enumerate(self._at):
            if one is not None and self.ready >> place & 1:
                self._levels[self._level(one.concurrency, self._load[place])] |= 1 << place


def next_bit(mask: int, after: int) -> int:
    """The first set bit behind this one, from the beginning again if there is none. The mask is not 0."""
    rest = mask >> after + 1
    return after + 1 + _lowest_bit(rest) if rest else _lowest_bit(mask)


def nth_bit(mask: int, number: int) -> int:
    """The set bit with this number, from 0."""
    place, width = 0, mask.bit_length()
    while width > 1:
        half = width // 2
        low = mask & (1 << half) - 1
        count = low.bit_count()
        if number < count:
            mask, width = low, half
        else:
            mask, width = mask >> half, width - half
            number -= count
            place += half
    return place


# Private


def _lowest_bit(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _loads(slots: int) -> range:
    return range(min(slots, _LEVELS_MAX * 4) + 1)
