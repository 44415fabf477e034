"""SessionAffinity: requests of one session go to one instance, as long as it can take them."""

from hashlib import blake2b
from math import log

from hostler.routing.ask import Ask
from hostler.routing.places import next_bit
from hostler.routing.policies import Policy

_CHOICES = 8  # of a session that are tried in its own order; then whoever is next has it


class SessionAffinity(Policy):
    """Each session has an order of the instances of its own; the first with a free slot serves.

    Jump consistent hashing (Lamping and Veach 2014) over the places of instances among the copies of
    their model, once for each choice: when an instance goes, only its own sessions move, and one that
    comes takes 1/n of each. One that is replaced gets its sessions back, and all gateways agree. A second
    one at a place, while it is renewed, has a share under its own name (weighted rendezvous). A request
    without a session goes to the least loaded instance.
    """

    name = "session"

    def __init__(self) -> None:
        super().__init__()
        self._at: dict[int, list[int]] = {}  # by replica, the oldest process first
        self._seeds: dict[int, int] = {}  # of the others there
        self._replica: dict[int, int] = {}
        self._top = 0

    def changed(self, place: int) -> None:
        self._seeds.pop(place, None)
        replica = self._replica.pop(place, -1)
        if replica >= 0:
            self._at[replica].remove(place)
            self._settle(replica)
        if self.places.ready >> place & 1:
            replica = self.places.at(place).replica
            self._replica[place] = replica
            self._at.setdefault(replica, []).append(place)
            self._settle(replica)

    def pick(self, among: int, ask: Ask) -> int:
        session = ask.session
        if not session:
            self.why = "no session, least in flight"
            return self.places.least(among)
        number = number_of(session)
        self.why = "session"
        for choice in range(_CHOICES):
            place = self._choice(_mixed(number, choice))
            if place >= 0:
                if among >> place & 1:
                    return place
                self.why = "session, but its instance is full"
        return next_bit(among, number % among.bit_length())

    # Private

    def _settle(self, replica: int) -> None:
        """See who has this place, and who is only beside it."""
        here, places = self._at[replica], self.places
        for place in here:
            self._seeds.pop(place, None)
        if not here:
            del self._at[replica]
            if replica + 1 == self._top:
                self._top = max(self._at, default=-1) + 1
            return
        self._top = max(self._top, replica + 1)
        if len(here) > 1:
            here.sort(key=lambda place: (places.at(place).epoch, place))
            for place in here[1:]:
                self._seeds[place] = number_of(places.at(place).instance_id.encode())

    def _choice(self, number: int) -> int:
        """The place that this number says; -1: nobody is there."""
        if self._seeds:
            best, place = -len(self._at) / log(_unit(_mixed(number, 2))), -1
            for other, seed in self._seeds.items():
                score = -1.0 / log(_unit(_mixed(number ^ seed, 1)))
                if score > best:
                    best, place = score, other
            if place >= 0:
                return place
        here = self._at.get(_jump(number, self._top))
        return here[0] if here is not None else -1


def number_of(name: bytes) -> int:
    """64 bits that any process makes of this name."""
    return int.from_bytes(blake2b(name, digest_size=8).digest())


# Private

_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: multiplying mixes all bits upwards


def _mixed(number: int, salt: int) -> int:
    """Another number for each salt; for 0 the number itself."""
    if not salt:
        return number
    mixed = ((number ^ salt * _SPREAD) * _SPREAD) & _MASK
    return ((mixed ^ mixed >> 29) * _SPREAD) & _MASK


def _unit(number: int) -> float:
    """Between 0 and 1, and neither."""
    return ((number >> 11) + 0.5) / (1 << 53)


def _jump(number: int, count: int) -> int:
    """One of so many, so that of one more only its own share moves there."""
    place, following = -1, 0
    while following < count:
        place = following
        number = (number * 2862933555777941757 + 1) & _MASK
        following = int((place + 1) * ((1 << 31) / ((number >> 33) + 1)))
    return place
