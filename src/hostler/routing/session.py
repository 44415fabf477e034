"""SessionAffinity: requests of one session go to one instance, as long as it can take them."""

from collections.abc import Sequence
from hashlib import blake2b

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.policies import LeastInFlight, Loads, Policy

HOMES_MAX = 4096  # sessions whose first choice is remembered


class SessionAffinity(Policy):
    """Each session ranks the instances in an order of its own; the first with a free slot serves.

    Rendezvous hashing (Thaler and Ravishankar 1998): when an instance goes, only its own sessions
    move, and one that comes takes 1/n of each. The order hangs on the place of an instance among the
    copies of its model, so one that is replaced gets its sessions back, and all gateways agree. A
    request without a session goes to the least loaded instance.
    """

    name = "session"

    def __init__(self) -> None:
        self._least = LeastInFlight()
        self._seeds: dict[str, int] = {}
        self._ready: Sequence[InstanceView] = ()
        self._homes: dict[int, InstanceView] = {}  # the first choices of sessions seen lately

    def update(self, ready: Sequence[InstanceView]) -> None:
        self._least.update(ready)
        self._homes.clear()
        self._ready = ready
        places: dict[
            str, str
        ] = {}  # a second one at a place, while it is renewed, has its own name
        for instance in sorted(ready, key=lambda i: i.epoch):
            places.setdefault(f"place {instance.replica}", instance.instance_id)
        named = {instance_id: place for place, instance_id in places.items()}
        self._seeds = {
            i.instance_id: number_of(named.get(i.instance_id, i.instance_id).encode())
            for i in ready
        }

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        session = ask.session
        if not session:
            self.why = "no session, least in flight"
            return self._least.choose(ready, loads, ask)
        number, seeds = number_of(session), self._seeds
        home = self._homes.get(number)
        if home is None:
            if len(self._homes) >= HOMES_MAX:
                self._homes.clear()
            home = max(self._ready, key=lambda i: _rank(number, seeds[i.instance_id]))
            self._homes[number] = home
        if len(ready) == len(seeds) or home in ready:
            self.why = "session"
            return home
        self.why = "session, but its instance is full"
        return max(ready, key=lambda i: _rank(number, seeds[i.instance_id]))


def number_of(name: bytes) -> int:
    """64 bits that any process makes of this name."""
    return int.from_bytes(blake2b(name, digest_size=8).digest())


# Private

_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: multiplying mixes all bits upwards


def _rank(number: int, seed: int) -> int:
    mixed = ((number ^ seed) * _SPREAD) & _MASK
    return ((mixed ^ mixed >> 29) * _SPREAD) & _MASK
