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
from hostler.core.snapshot import InstanceView, ModelView
from hostler.routing.afar import Afar
from hostler.routing.ask import ANYBODY, Ask
from hostler.routing.health import Health
from hostler.routing.peers import Peers
from hostler.routing.places import Places
from hostler.routing.policies import Loads, Policy
from hostler.routing.queue import Queue

RETRY_AFTER_MAX_S = 60
_WEIGHT = 0.1  # of the newest service time in the moving average


class Busy(Overloaded):
    """Every slot of the model is taken: wait, or try again later."""


class ModelPool:
    """One model.

    places: its instances. service_s: moving average of how long a slot is held. limits: slots of the
    ready ones by instance id. shared_by: how many routers of this machine lend these slots.
    afar: what those of other machines have of them. is_wanted: requests wait there, too.
    """

    __slots__ = (
        "_gone",
        "_health_seen",
        "_make_policy",
        "_out",
        "_ready",
        "afar",
        "in_flight",
        "is_wanted",
        "limits",
        "model",
        "places",
        "policy",
        "queue",
        "service_s",
        "shared_by",
    )

    def __init__(
        self, model: ModelView, make_policy: Callable[[ModelView], Policy], afar: Afar
    ) -> None:
        self.model = model
        self.afar = afar
        self.is_wanted = False
        self.places = Places()
        self._make_policy = make_policy
        self.policy = self._new_policy()
        self._gone: set[str] = set()  # since the last `settle`
        self._ready: tuple[InstanceView, ...] | None = ()
        self.limits: dict[str, int] = {}
        self.in_flight = 0
        self.queue = Queue()
        self.service_s = 0.0
        self.shared_by = 1
        self._out = 0
        self._health_seen = (-1, 0.0)

    # What a newer snapshot says; `settle` after all of it

    def describe(self, model: ModelView) -> None:
        """The model is described anew."""
        before, self.model = self.model, model
        if _asks(model) != _asks(before):
            self.policy = self._new_policy()
            self._ready = None

    def put(self, instance: InstanceView, loads: Loads) -> None:
        """An instance is new, or other than before. loads: what we have in flight."""
        instance_id, afar = instance.instance_id, self.afar
        place = self.places.put(
            instance,
            loads.in_flight.get(instance_id, 0),
            afar.theirs.get(instance_id, 0),
            afar.limit(instance_id, instance.concurrency, is_wanted=self.is_wanted),
        )
        if self.places.ready >> place & 1:
            self.limits[instance_id] = instance.concurrency
        else:
            self.limits.pop(instance_id, None)
        if self.policy.wants_tokens:
            self.policy.noted(place, loads.prompt_tokens.get(instance_id, 0))
        self.policy.changed(place)
        self._ready, self._health_seen = None, (-1, 0.0)

    def share_out(self, instance: InstanceView) -> bool:
        """Go by what is known now of other machines there; True: we may have more than before."""
        instance_id, places = instance.instance_id, self.places
        place = places.place(instance_id)
        before, slots = places.limit[place], instance.concurrency
        limit = self.afar.limit(instance_id, slots, is_wanted=self.is_wanted)
        places.share_out(place, self.afar.theirs.get(instance_id, 0), limit)
        return limit > before

    def drop(self, instance_id: str) -> None:
        """An instance is no more."""
        place = self.places.drop(instance_id)
        if place >= 0:
            self.limits.pop(instance_id, None)
            self.policy.changed(place)
            self.places.reuse(self.policy.gone(1 << place))
            self._gone.add(instance_id)
            self._ready, self._health_seen = None, (-1, 0.0)

    def settle(self) -> None:
        """That was all: tell a policy that wants lists."""
        if self.policy.wants_list:
            if self._gone:
                self.policy.forget(self._gone)
            if self._ready is None:
                self.policy.update(self.ready)
        self._gone = set()

    # Who there is

    @property
    def ready(self) -> tuple[InstanceView, ...]:
        """The ready instances, in the order of their places. Made when asked for."""
        if self._ready is None:
            self._ready = tuple(self.places.each(self.places.ready))
        return self._ready

    @property
    def slots(self) -> int:
        return self.places.slots

    @property
    def has_slot(self) -> bool:
        return self.places.free != 0

    def free(self, exclude: Set[str], health: Health) -> int:
        """Who may be asked now, and has a slot.

        Who is ejected is left out; when that is everyone, the one ejected longest ago stays. It is chosen
        among all that could be asked, busy or not: a full healthy instance means waiting, not sending
        the request to an ejected one.
        """
        places = self.places
        allowed, free = places.ready, places.free
        if exclude:
            left_out = ~places.mask(exclude)
            allowed, free = allowed & left_out, free & left_out
        if not health:
            return free
        seen, until_s = self._health_seen
        if seen != health.version or until_s <= health.now_s():
            ids = self.limits if len(places) < len(health) else health.held()
            self._out = places.mask(one for one in ids if health.is_out(one))
            self._health_seen = health.version, health.next_back_s()
        out = self._out
        if not out or allowed & ~out:
            return free & ~out
        alive = [i for i in places.each(free) if not health.is_down(i.instance_id)]
        if not alive:
            return 0
        first = min(alive, key=lambda one: health.ejected_at_s(one.instance_id))
        return 1 << places.place(first.instance_id)

    def look(self, load: Mapping[str, int], peers: Peers | None) -> None:
        """See which instances are full, with what other routers have there. load: what we have."""
        places = self.places
        for instance_id, slots in self.limits.items():
            ours = load.get(instance_id, 0)
            place = places.place(instance_id)
            places.note(place, ours, slots)
            if peers is not None and ours + peers.elsewhere(instance_id) >= places.limit[place]:
                places.free &= ~(1 << place)  # until the next look

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
        shared_by = self.shared_by * self.afar.machines
        expected_s = (self.queue.ahead(ask) + 1) * self.service_s * shared_by / max(1, self.slots)
        return min(RETRY_AFTER_MAX_S, max(1, ceil(expected_s)))

    def explain(self, exclude: Set[str], is_down: Callable[[str], bool]) -> HostlerError:
        """Say why no instance could be had. is_down: did probes find this one dead?"""
        model = self.model
        if any(i.instance_id not in exclude and not is_down(i.instance_id) for i in self.ready):
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

    def _new_policy(self) -> Policy:
        made = self._make_policy(self.model)
        if not made.wants_list:
            made.places = self.places
            for one in self.places.each(self.places.ready):
                made.changed(self.places.place(one.instance_id))
        return made


# Private


def _asks(model: ModelView) -> tuple[object, ...]:
    """What of a model decides on its policy; a policy that stays remembers what it learned."""
    return model.routing.policy, model.routing.weights, model.worker_type
