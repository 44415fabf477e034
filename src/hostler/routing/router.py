"""Router: lends a slot of an instance to a request and takes it back, whatever happens.

Snapshot → health → policy → slot. No I/O here; time comes from an injected clock.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Set
from enum import StrEnum
from math import ceil
from time import monotonic

from hostler.core.errors import (
    HostlerError,
    ModelLoading,
    ModelNotFound,
    NoReadyInstance,
    Overloaded,
)
from hostler.core.lifecycle import State
from hostler.core.snapshot import InstanceView, ModelView, Snapshot
from hostler.routing.health import Health
from hostler.routing.policies import LeastInFlight, RoutingPolicy

NOBODY: frozenset[str] = frozenset()
RETRY_AFTER_MAX_S = 60
_WEIGHT = 0.1  # of the newest service time in the moving average


class Busy(Overloaded):
    """Every slot of the model is taken: wait, or try again later."""


class Outcome(StrEnum):
    """How a claim ended. Only refused, lost and upstream_status tell of the instance."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    CLIENT_ERROR = "client_error"
    UPSTREAM_STATUS = "upstream_status"
    REFUSED = "refused"
    LOST = "lost"


class Claim:
    """One slot of one instance, lent until `release`."""

    __slots__ = ("_pool", "_router", "instance", "since_s")

    def __init__(self, router: "Router", pool: "ModelPool", instance: InstanceView) -> None:
        self._router: Router | None = router
        self._pool = pool
        self.instance = instance
        self.since_s = router.clock()

    def release(self, outcome: Outcome, *, witness: bytes = b"") -> None:
        """Give the slot back. Exactly once: later calls do nothing.

        witness: names the request (see Quarantine), for outcome upstream_status.
        """
        router, self._router = self._router, None
        if router is not None:
            router.take_back(self, self._pool, outcome, witness)


class Waiter:
    """A request in the queue of a model. `done` is called once: with a claim or an error."""

    __slots__ = ("_pool", "_router", "done", "exclude")

    def __init__(
        self,
        router: "Router",
        pool: "ModelPool",
        exclude: Set[str],
        done: Callable[["Claim | HostlerError"], None],
    ) -> None:
        self._router = router
        self._pool = pool
        self.exclude = exclude
        self.done = done

    def cancel(self) -> None:
        """Leave the queue without a call of `done`."""
        if self in self._pool.queue:
            self._pool.queue.remove(self)

    def expire(self) -> None:
        """Leave the queue because the wait was too long."""
        if self in self._pool.queue:
            self._pool.queue.remove(self)
            self.done(self._router.overloaded(self._pool, "the wait for a free slot was too long"))


class ModelPool:
    """What a router knows of one model."""

    __slots__ = ("in_flight", "instances", "model", "queue", "ready", "service_s", "slots")

    def __init__(self, model: ModelView) -> None:
        self.model = model
        self.instances: tuple[InstanceView, ...] = ()
        self.ready: tuple[InstanceView, ...] = ()
        self.slots = 0
        self.in_flight = 0
        self.queue: deque[Waiter] = deque()
        self.service_s = 0.0  # moving average of how long a slot is held


class Router:
    """Who serves the next request of a model. One event loop; every method returns at once."""

    def __init__(
        self,
        *,
        policy: RoutingPolicy | None = None,
        queue_length: int = 128,
        queue_wait_s: float = 30.0,
        eject_s: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.clock = clock
        self.queue_wait_s = queue_wait_s
        self.health = Health(eject_s=eject_s, clock=clock)
        self._policy = policy or LeastInFlight()
        self._queue_length = queue_length
        self._pools: dict[str, ModelPool] = {}
        self._names: dict[str, ModelPool] = {}  # with aliases
        self._load: dict[str, int] = {}

    @property
    def load(self) -> Mapping[str, int]:
        """Requests in flight by instance id; an idle instance is absent."""
        return self._load

    def models(self) -> tuple[ModelView, ...]:
        return tuple(pool.model for pool in self._pools.values())

    def model(self, name: str) -> ModelView | None:
        """The model of this name or alias."""
        pool = self._names.get(name)
        return pool.model if pool is not None else None

    def waiting(self, name: str) -> int:
        """How many requests wait for a slot of this model."""
        pool = self._names.get(name)
        return len(pool.queue) if pool is not None else 0

    def usable(self, name: str) -> tuple[InstanceView, ...]:
        """The ready instances that probes have not found dead."""
        pool = self._names.get(name)
        ready = pool.ready if pool is not None else ()
        return tuple(i for i in ready if not self.health.is_down(i.instance_id))

    def update(self, snapshot: Snapshot) -> None:
        """Take over a newer snapshot. Claims that are out stay valid until released."""
        by_model: dict[str, list[InstanceView]] = {}
        for instance in snapshot.instances:
            by_model.setdefault(instance.model_name, []).append(instance)
        old, self._pools, self._names = self._pools, {}, {}
        for model in snapshot.models:
            pool = old.pop(model.name, None) or ModelPool(model)
            pool.model = model
            pool.instances = tuple(by_model.get(model.name, ()))
            pool.ready = tuple(i for i in pool.instances if i.state is State.READY)
            pool.slots = sum(i.concurrency for i in pool.ready)
            self._pools[model.name] = pool
            for name in (model.name, *model.aliases):
                self._names.setdefault(name, pool)
        self.health.keep_only(i.instance_id for i in snapshot.instances)
        for pool in old.values():
            pool.ready, pool.slots = (), 0
            self._fail_queue(pool, ModelNotFound(f"model {pool.model.name!r} was removed"))
        for pool in tuple(self._pools.values()):
            self._serve_queue(pool)

    def select(self, model: str) -> InstanceView:
        """Return the instance a claim would get now, without taking a slot. Raises as `claim`, but
        a model whose slots are all taken has an instance too.
        """
        pool = self._names.get(model)
        if pool is None:
            raise ModelNotFound(f"model {model!r} is not known")
        usable = self.usable(model)
        if not usable:
            raise self._explain(pool, NOBODY)
        healthy = [i for i in usable if not self.health.is_out(i.instance_id)]
        return self._policy.choose(healthy or usable, self._load)

    def claim(self, model: str, *, exclude: Set[str] = NOBODY) -> Claim:
        """Take a slot now.

        exclude: ids of instances that must not be used.

        Raises:
            ModelNotFound, ModelLoading, NoReadyInstance: see the class of each.
            Busy: every slot is taken, or others wait already.
        """
        pool = self._names.get(model)
        if pool is None:
            raise ModelNotFound(f"model {model!r} is not known")
        if pool.queue:
            raise self._busy(pool)
        return self._take(pool, exclude)

    def enqueue(
        self, model: str, *, exclude: Set[str], done: Callable[[Claim | HostlerError], None]
    ) -> Waiter:
        """Stand in the model's queue; `done` may be called before this returns.

        Raises:
            Overloaded: the queue is full. ModelNotFound: no such model.
        """
        pool = self._names.get(model)
        if pool is None:
            raise ModelNotFound(f"model {model!r} is not known")
        if len(pool.queue) >= self._queue_length:
            raise self.overloaded(pool, f"{len(pool.queue)} requests wait already")
        waiter = Waiter(self, pool, exclude, done)
        pool.queue.append(waiter)
        self._serve_queue(pool)
        return waiter

    async def wait_claim(
        self, model: str, *, exclude: Set[str] = NOBODY, deadline_s: float | None = None
    ) -> Claim:
        """Take a slot, or wait for one in the order of arrival.

        deadline_s: seconds to wait at most; the configured queue wait when left out.

        Raises:
            Overloaded: the queue is full, or the wait was too long. Otherwise as `claim`.
        """
        try:
            return self.claim(model, exclude=exclude)
        except Busy:
            pass
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Claim | HostlerError] = loop.create_future()

        def done(result: Claim | HostlerError) -> None:
            if not answer.done():
                answer.set_result(result)
            elif isinstance(result, Claim):
                result.release(Outcome.CLIENT_GONE)

        waiter = self.enqueue(model, exclude=exclude, done=done)
        wait_s = self.queue_wait_s if deadline_s is None else deadline_s
        timer = loop.call_later(max(0.0, wait_s), waiter.expire)
        try:
            result = await answer
        except asyncio.CancelledError:
            waiter.cancel()
            if answer.done() and not answer.cancelled() and isinstance(answer.result(), Claim):
                answer.result().release(Outcome.CLIENT_GONE)  # type: ignore[union-attr]
            raise
        finally:
            timer.cancel()
        if isinstance(result, HostlerError):
            raise result
        return result

    def take_back(self, claim: Claim, pool: ModelPool, outcome: Outcome, witness: bytes) -> None:
        """For `Claim.release` alone."""
        instance_id = claim.instance.instance_id
        left = self._load[instance_id] - 1
        if left:
            self._load[instance_id] = left
        else:
            del self._load[instance_id]
        pool.in_flight -= 1
        if outcome is Outcome.OK:
            held_s = self.clock() - claim.since_s
            pool.service_s += (held_s - pool.service_s) * (_WEIGHT if pool.service_s else 1.0)
        if outcome is not Outcome.OK or self.health:
            self._note(instance_id, pool, outcome, witness)
        if pool.queue:
            self._serve_queue(pool)

    def note_probe(self, instance_id: str, is_good: bool) -> None:
        """An active probe answered, or did not."""
        self.health.probed(instance_id, is_good)
        for pool in tuple(self._pools.values()):
            if pool.queue:
                self._serve_queue(pool)

    def overloaded(self, pool: ModelPool, why: str) -> Overloaded:
        """The error of a request that found no slot, with a measured Retry-After."""
        return Overloaded(
            f"model {pool.model.name!r}: all {pool.slots} slots are taken and {why}",
            retry_after_s=self._retry_after_s(pool),
            model=pool.model.name,
        )

    # Private

    def _take(self, pool: ModelPool, exclude: Set[str]) -> Claim:
        load = self._load
        free = [
            i
            for i in pool.ready
            if load.get(i.instance_id, 0) < i.concurrency and i.instance_id not in exclude
        ]
        if self.health:
            free = self._healthy(pool, free, exclude)
        if not free:
            raise self._explain(pool, exclude)
        chosen = self._policy.choose(free, load)
        load[chosen.instance_id] = load.get(chosen.instance_id, 0) + 1
        pool.in_flight += 1
        return Claim(self, pool, chosen)

    def _healthy(
        self, pool: ModelPool, free: list[InstanceView], exclude: Set[str]
    ) -> list[InstanceView]:
        """Leave out who is ejected; when that is everyone, keep the one ejected longest ago.

        The one kept is chosen among all that could be asked, busy or not: a full healthy instance
        means waiting, not sending the request to an ejected one.
        """
        is_out = self.health.is_out
        if any(not is_out(i.instance_id) for i in pool.ready if i.instance_id not in exclude):
            return [i for i in free if not is_out(i.instance_id)]
        alive = [i for i in free if not self.health.is_down(i.instance_id)]
        if not alive:
            return []
        return [min(alive, key=lambda i: self.health.ejected_at_s(i.instance_id))]

    def _explain(self, pool: ModelPool, exclude: Set[str]) -> HostlerError:
        """Say why no instance could be had."""
        model = pool.model
        usable = [
            i
            for i in pool.ready
            if i.instance_id not in exclude and not self.health.is_down(i.instance_id)
        ]
        if usable:
            return self._busy(pool)
        if model.renewing:
            return Busy(
                f"model {model.name!r}: its instance is being replaced by a new one",
                retry_after_s=self._retry_after_s(pool),
                model=model.name,
            )
        counts = ", ".join(f"{count} {state}" for state, count in model.states) or "none started"
        down = len(pool.ready) - len([i for i in pool.ready if i in usable])
        if pool.ready:
            counts += f"; {down} of the ready ones do not answer"
        if model.loading and not pool.ready:
            return ModelLoading(
                f"model {model.name!r} is loading: {counts}", retry_after_s=2, model=model.name
            )
        hint = f"; see `hostler model show {model.name}`"
        return NoReadyInstance(
            f"model {model.name!r}: 0 of {model.wanted} instances can serve ({counts}){hint}",
            retry_after_s=2 if model.wanted else 10,
            model=model.name,
        )

    def _busy(self, pool: ModelPool) -> Busy:
        return Busy(
            f"model {pool.model.name!r}: all {pool.slots} slots are taken",
            retry_after_s=self._retry_after_s(pool),
            model=pool.model.name,
        )

    def _retry_after_s(self, pool: ModelPool) -> int:
        """When one more should find a slot: queue and one turn, by measured service times."""
        expected_s = (len(pool.queue) + 1) * pool.service_s / max(1, pool.slots)
        return min(RETRY_AFTER_MAX_S, max(1, ceil(expected_s)))

    def _serve_queue(self, pool: ModelPool) -> None:
        """Lend what is free in the order of arrival; tell the rest when nothing can come."""
        for waiter in tuple(pool.queue):
            if waiter not in pool.queue:
                continue  # a call of `done` below changed the queue
            try:
                claim = self._take(pool, waiter.exclude)
            except Busy:
                if not waiter.exclude:
                    return
            except HostlerError as error:
                pool.queue.remove(waiter)
                waiter.done(error)
            else:
                pool.queue.remove(waiter)
                waiter.done(claim)

    def _fail_queue(self, pool: ModelPool, error: HostlerError) -> None:
        while pool.queue:
            pool.queue.popleft().done(error)

    def _note(self, instance_id: str, pool: ModelPool, outcome: Outcome, witness: bytes) -> None:
        match outcome:
            case Outcome.OK | Outcome.CLIENT_ERROR:
                self.health.succeeded(instance_id)
            case Outcome.REFUSED | Outcome.LOST:
                self.health.failed(instance_id)
            case Outcome.UPSTREAM_STATUS:
                self.health.answered_5xx(instance_id, witness, (i.instance_id for i in pool.ready))
