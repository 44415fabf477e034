"""ModelPool: what a router knows of one model: its instances, its slots, its queue, its policy."""

from collections.abc import Callable, Mapping, Set
from math import ceil

from hostler.core.errors import (
    HostlerError,
    ModelLoading,
    NoReadyInstance,
    Overloaded,
    RateLimitExceeded,
)
from hostler.core.lifecycle import State
from hostler.core.snapshot import InstanceView, ModelView
from hostler.routing.ask import ANYBODY, Ask
from hostler.routing.peers import Peers
from hostler.routing.policies import Policy
from hostler.routing.queue import Queue

RETRY_AFTER_MAX_S = 60
_WEIGHT = 0.1  # of the newest service time in the moving average


class Busy(Overloaded):
    """Every slot of the model is taken: wait, or try again later."""


class ModelPool:
    """One model.

    service_s: moving average of how long a slot is held. limits: slots by instance id.
    full: ids of the instances without a free one. shared_by: how many routers lend these slots.
    """

    __slots__ = (
        "_make_policy",
        "full",
        "in_flight",
        "instances",
        "limits",
        "model",
        "policy",
        "queue",
        "ready",
        "service_s",
        "shared_by",
        "slots",
    )

    def __init__(self, model: ModelView, make_policy: Callable[[ModelView], Policy]) -> None:
        self.model = model
        self.policy = make_policy(model)
        self._make_policy = make_policy
        self.instances: tuple[InstanceView, ...] = ()
        self.ready: tuple[InstanceView, ...] = ()
        self.limits: dict[str, int] = {}
        self.full: set[str] = set()
        self.slots = 0
        self.in_flight = 0
        self.queue = Queue()
        self.service_s = 0.0
        self.shared_by = 1

    def update(
        self, model: ModelView, instances: tuple[InstanceView, ...], load: Mapping[str, int]
    ) -> None:
        """Take over what a newer snapshot says. load: requests in flight by instance id."""
        if _asks(model) != _asks(self.model):
            self.policy = self._make_policy(model)
        self.model = model
        before, self.instances = self.instances, instances
        self.ready = tuple(i for i in instances if i.state is State.READY)
        self.limits = {i.instance_id: i.concurrency for i in self.ready}
        self.slots = sum(self.limits.values())
        self.look(load, None)
        gone = {i.instance_id for i in before}.difference(i.instance_id for i in instances)
        if gone:
            self.policy.forget(gone)
        self.policy.update(self.ready)

    @property
    def has_slot(self) -> bool:
        return len(self.full) < len(self.limits)

    def look(self, load: Mapping[str, int], peers: Peers | None) -> None:
        """See which instances are full, with what other routers have there. load: what we have."""
        self.full = {
            one
            for one, slots in self.limits.items()
            if load.get(one, 0) + (peers.elsewhere(one) if peers is not None else 0) >= slots
        }

    def note_service(self, held_s: float) -> None:
        """A slot was held so long by a request that was answered."""
        self.service_s += (held_s - self.service_s) * (_WEIGHT if self.service_s else 1.0)

    # What a request is told

    def busy(self, ask: Ask = ANYBODY) -> Busy:
        return Busy(
            f"model {self.model.name!r}: all {self.slots} slots are taken",
            retry_after_s=self.retry_after_s(ask),
            model=self.model.name,
        )

    def overloaded(self, why: str, ask: Ask = ANYBODY) -> Overloaded:
        """The error of a request that found no slot, with a measured Retry-After."""
        return Overloaded(
            f"model {self.model.name!r}: all {self.slots} slots are taken and {why}",
            retry_after_s=self.retry_after_s(ask),
            model=self.model.name,
        )

    def too_late(self, ask: Ask) -> HostlerError:
        """For a waiter whose time is over."""
        return self.overloaded("the wait for a free slot was too long", ask)

    def displaced(self, ask: Ask) -> RateLimitExceeded:
        """For a waiter that leaves a full queue to a key, or a class, that has less than its share."""
        return RateLimitExceeded(
            f"model {self.model.name!r}: the queue is full, and a request of a higher class, or of a "
            "key with less of its share in it, has taken the place of this key's newest one",
            retry_after_s=self.retry_after_s(ask),
            model=self.model.name,
        )

    def retry_after_s(self, ask: Ask = ANYBODY) -> int:
        """When one more of this key should find a slot, by measured service times."""
        expected_s = (
            (self.queue.ahead(ask) + 1) * self.service_s * self.shared_by / max(1, self.slots)
        )
        return min(RETRY_AFTER_MAX_S, max(1, ceil(expected_s)))

    def explain(self, exclude: Set[str], is_down: Callable[[str], bool]) -> HostlerError:
        """Say why no instance could be had. is_down: did probes find this one dead?"""
        model = self.model
        usable = [
            i for i in self.ready if i.instance_id not in exclude and not is_down(i.instance_id)
        ]
        if usable:
            return self.busy()
        if model.renewing:
            return Busy(
                f"model {model.name!r}: its instance is being replaced by a new one",
                retry_after_s=self.retry_after_s(),
                model=model.name,
            )
        counts = ", ".join(f"{count} {state}" for state, count in model.states) or "none started"
        if self.ready:
            counts += f"; {len(self.ready)} of the ready ones do not answer"
        if model.loading and not self.ready:
            return ModelLoading(
                f"model {model.name!r} is loading: {counts}", retry_after_s=2, model=model.name
            )
        hint = f"; see `hostler model show {model.name}`"
        return NoReadyInstance(
            f"model {model.name!r}: 0 of {model.wanted} instances can serve ({counts}){hint}",
            retry_after_s=2 if model.wanted else 10,
            model=model.name,
        )


# Private


def _asks(model: ModelView) -> tuple[object, ...]:
    """What of a model decides on its policy; a policy that stays remembers what it learned."""
    return model.routing.policy, model.routing.weights, model.worker_type
