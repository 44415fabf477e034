"""Flights: a long new prompt that several requests begin with is read once.

The first request that brings it to an instance *leads* until its first token; others that begin alike and
go to the same instance *follow*: they wait for that, for then its engine starts from what it has read. The
numbers of `prefix.py` say how far prompts are equal. Pure: who waits, for how long and in which slot is the
business of whoever asks (gateway/flights.py).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import inf
from typing import Generic, TypeVar

from hostler.core.model import PrefixReach
from hostler.core.snapshot import InstanceView
from hostler.routing.prefix import BLOCK_BYTES, HEAD_BYTES

Who = TypeVar("Who")

NEW_BLOCKS = 4  # 2 KiB, some 500 tokens: less is read sooner than anything is arranged
NEW_BYTES = NEW_BLOCKS * BLOCK_BYTES
HEAD_BLOCKS = HEAD_BYTES // BLOCK_BYTES  # all that is looked at of a prompt
FOLLOWERS_MAX = 64  # of one flight; who comes later reads for itself
BLOCKS_MAX = 4096  # that are remembered of an instance: 2 MiB of prompts, some 1 MB of memory


class Role(StrEnum):
    """What a request is in a flight."""

    ALONE = "alone"  # it has nothing to wait for, and nothing that others could
    LEADS = "leads"
    FOLLOWS = "follows"


class Known:
    """A beginning that was read. slots: how many have it. aboard: requests of it that are there now."""

    __slots__ = ("aboard", "slots")

    def __init__(self, slots: float) -> None:
        self.slots = slots
        self.aboard = 1


class Passage(Generic[Who]):
    """A request with a long prompt, from its way to an instance to its end there.

    who: of the caller. known_blocks: of its prompt, how many the instance has where this one can use them.
    """

    __slots__ = ("_blocks", "_flight", "_known", "_place", "_size", "known_blocks", "who")

    def __init__(self, who: Who, place: "_Place[Who]", blocks: Sequence[int], size: int) -> None:
        self.who = who
        self.known_blocks = 0
        self._place = place
        self._blocks = blocks
        self._size = size
        self._known: list[Known] = []
        self._flight: Flight[Who] | None = None

    @property
    def flight(self) -> "Flight[Who] | None":
        """Which it leads or follows, as long as that has not landed."""
        return self._flight

    @property
    def role(self) -> Role:
        flight = self._flight
        if flight is None:
            return Role.ALONE
        return Role.LEADS if flight.leader is self else Role.FOLLOWS


class Flight(Generic[Who]):
    """One beginning on its way. leader: who reads it. followers: who waits for that, in their order.

    is_lent: it is being read for all of them at once, on nobody's behalf.
    """

    __slots__ = ("_keys", "followers", "is_lent", "leader", "new_blocks")

    def __init__(self, leader: Passage[Who], keys: Sequence[int], new_blocks: int) -> None:
        self.leader = leader
        self.followers: dict[Passage[Who], None] = {}
        self.is_lent = False
        self.new_blocks = new_blocks  # that it reads
        self._keys = keys

    @property
    def members(self) -> list[Passage[Who]]:
        return [self.leader, *self.followers]


class _Place(Generic[Who]):
    """What is known of one instance."""

    __slots__ = ("known", "open", "reach")

    def __init__(self, reach: PrefixReach) -> None:
        self.reach = reach
        self.known: OrderedDict[int, Known] = OrderedDict()
        self.open: dict[int, Flight[Who]] = {}


class FlightTable(Generic[Who]):
    """The flights of one gateway, and what its instances have read before. Bounded by both."""

    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        self._blocks_max = blocks_max
        self._places: dict[str, _Place[Who]] = {}

    def forget(self, gone: Iterable[str]) -> None:
        """These instances are no more."""
        for instance_id in gone:
            self._places.pop(instance_id, None)

    def board(
        self,
        who: Who,
        instance: InstanceView,
        blocks: Sequence[int],
        size: int,
        *,
        can_lead: bool = True,
        may_follow: bool = True,
    ) -> Passage[Who]:
        """A request goes to this instance: alone, or as a part of a flight.

        size: blocks of the whole prompt; `blocks` are those of its beginning. can_lead: its first token
        is seen here. may_follow: it can wait.
        """
        place = self._places.get(instance.instance_id)
        if place is None:
            place = self._places[instance.instance_id] = _Place(instance.prefix_reach)
        passage = Passage(who, place, blocks, size)
        self._look(passage)
        known = passage.known_blocks
        if len(blocks) - known < NEW_BLOCKS:
            return passage
        flight = _find(passage) if place.open and may_follow else None
        if flight is not None and len(flight.followers) < FOLLOWERS_MAX:
            passage._flight = flight
            flight.followers[passage] = None
        elif can_lead:
            keys = blocks[known + NEW_BLOCKS - 1 :]
            passage._flight = flight = Flight(passage, keys, max(size, len(blocks)) - known)
            for key in keys:
                place.open.setdefault(key, flight)
        return passage

    def landed(self, passage: Passage[Who]) -> list[Passage[Who]]:
        """Its first token is there, so the instance has read its prompt. Returns who need not wait longer."""
        flight = passage._flight
        self._learn(passage)
        return self._dissolve(flight) if flight is not None and flight.leader is passage else []

    def lent(self, flight: Flight[Who], slots: int) -> list[Passage[Who]]:
        """What its leader begins with was read, and lent to so many other slots. Returns all members."""
        self._learn(flight.leader)
        for known in flight.leader._known:
            known.slots += slots
        members = self.given_up(flight)
        for follower in members[1:]:
            self._look(follower)
        return members

    def given_up(self, flight: Flight[Who]) -> list[Passage[Who]]:
        """Nothing comes of it. Returns all members."""
        return [flight.leader, *self._dissolve(flight)]

    def left(self, passage: Passage[Who]) -> Passage[Who] | None:
        """A request is no part of its flight any more. Returns who leads now, if that has changed."""
        flight, passage._flight = passage._flight, None
        if flight is None:
            return None
        if flight.leader is not passage:
            flight.followers.pop(passage, None)
            return None
        heir = next(iter(flight.followers), None)
        if heir is None:
            self._close(passage._place, flight)
            return None
        del flight.followers[heir]
        flight.leader = heir
        return heir

    def ended(self, passage: Passage[Who], cached_share: float | None = None) -> bool:
        """A request is not at its instance any more. Returns whether that had what we believed it had.

        cached_share: of its prompt, as the engine tells it; None: it does not.
        """
        known, passage._known = passage._known, []
        is_right = (
            cached_share is None
            or passage._place.reach is not PrefixReach.LENT
            or 2 * cached_share * passage._size >= passage.known_blocks
        )
        for one in known:
            if not is_right:  # now those slots have it whose requests are there
                one.slots = float(one.aboard)
            one.aboard -= 1
        return is_right

    # Private

    def _look(self, passage: Passage[Who]) -> None:
        """See what the instance has of a prompt that this request can use, and count it aboard of that."""
        known, mine = passage._place.known, passage._known
        last: Known | None = None
        depth, has_room = NEW_BLOCKS - 1, False
        for key in passage._blocks[depth:]:
            one = known.get(key)
            if one is None:
                break
            depth += 1
            known.move_to_end(key)
            if one is not last:
                last, has_room = one, one.aboard < one.slots
                if one not in mine:
                    mine.append(one)
                    one.aboard += 1
        if has_room:
            passage.known_blocks = depth

    def _learn(self, passage: Passage[Who]) -> None:
        """The instance has read this prompt; one slot of it, unless all share."""
        place, mine = passage._place, passage._known
        fresh = Known(inf if place.reach is PrefixReach.SHARED else 1)
        for key in passage._blocks[NEW_BLOCKS - 1 :]:
            one = place.known.setdefault(key, fresh)
            if one not in mine:
                mine.append(one)
                one.aboard += one is not fresh  # a fresh one counts its first already
        for one in mine:
            one.slots = max(one.slots, float(one.aboard))
        while len(place.known) > self._blocks_max:
            place.known.popitem(last=False)

    def _dissolve(self, flight: Flight[Who]) -> list[Passage[Who]]:
        """Close a flight; return its followers."""
        self._close(flight.leader._place, flight)
        followers = list(flight.followers)
        for one in (flight.leader, *followers):
            one._flight = None
        return followers

    def _close(self, place: _Place[Who], flight: Flight[Who]) -> None:
        for key in flight._keys:
            if place.open.get(key) is flight:
                del place.open[key]


# Private


def _find(passage: Passage[Who]) -> Flight[Who] | None:
    """Return the flight that shares most with a prompt, if that is much of what its leader reads."""
    blocks, known, place = passage._blocks, passage.known_blocks, passage._place
    for depth in range(len(blocks), known + NEW_BLOCKS - 1, -1):
        flight = place.open.get(blocks[depth - 1])
        if flight is None:
            continue
        # prompts that are equal as far as we look are taken to go on alike
        equal = depth if depth < HEAD_BLOCKS else min(passage._size, flight.leader._size)
        return flight if 2 * (equal - known) >= flight.new_blocks else None
    return None
