"""Which instance serves a request: one small class a policy, no I/O, no clock."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from hostler.core.snapshot import InstanceView


class RoutingPolicy(Protocol):
    """How a router picks."""

    def choose(self, ready: Sequence[InstanceView], load: Mapping[str, int]) -> InstanceView:
        """Pick one of `ready`, which is never empty and whose members have a free slot.

        load: requests in flight by instance id; 0 when absent.
        """
        ...


class LeastInFlight:
    """The instance with the fewest requests in flight; ties take turns."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ready: Sequence[InstanceView], load: Mapping[str, int]) -> InstanceView:
        count = len(ready)
        if count == 1:
            return ready[0]
        self._turn = turn = (self._turn + 1) % count
        best, best_load = ready[turn], load.get(ready[turn].instance_id, 0)
        for step in range(1, count):
            if not best_load:
                break
            other = ready[(turn + step) % count]
            other_load = load.get(other.instance_id, 0)
            if other_load < best_load:
                best, best_load = other, other_load
        return best
