"""Which instance serves a request: one small class a policy, no I/O, no clock."""

from collections.abc import Sequence

from hostler.core.snapshot import InstanceView, ModelView
from hostler.routing.ask import Ask


class Loads:
    """What instances work on now, by instance id; one that is absent does nothing.

    prompt_tokens: counted only for policies that want it (`wants_tokens`).
    """

    __slots__ = ("in_flight", "prompt_tokens")

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self.prompt_tokens: dict[str, int] = {}


class RoutingPolicy:
    """How a router picks. One object a model; a class of your own derives from this one.

    why: what spoke for the last choice, in a few words: for the request's timeline.
    wants_tokens: whether Loads.prompt_tokens must be kept. learns: whether `taken` is to be called.
    """

    why = ""
    wants_tokens = False
    learns = False

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        """Pick one of `ready`, which is never empty and whose members have a free slot."""
        raise NotImplementedError

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        """The request goes there (a choice for a question takes no slot, and is not told)."""

    def update(self, ready: Sequence[InstanceView]) -> None:
        """These are the model's ready instances from now on."""


class LeastInFlight(RoutingPolicy):
    """The instance with the fewest requests in flight; ties take turns."""

    why = "least in flight"

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        count = len(ready)
        if count == 1:
            return ready[0]
        load = loads.in_flight
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


def make_policy(model: ModelView) -> RoutingPolicy:
    """Return the policy that a model's rules ask for."""
    return LeastInFlight()
