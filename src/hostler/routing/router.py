"""Router: lends a slot of an instance to a request and takes it back, whatever happens.

Snapshot → health → policy → slot. No I/O here; time comes from an injected clock.
"""

import asyncio
from collections.abc import Callable, Mapping, Set
from time import monotonic
from typing import Final

from hostler.core.change import Change
from hostler.core.errors import HostlerError, ModelNotFound
from hostler.core.snapshot import InstanceView, ModelView, Snapshot
from hostler.routing.ask import ANYBODY, Ask
from hostler.routing.claim import Claim, Outcome
from hostler.routing.health import Health
from hostler.routing.making import make_policy
from hostler.routing.peers import Peers
from hostler.routing.policies import Loads, Policy
from hostler.routing.pool import Busy, ModelPool
from hostler.routing.pools import Pools
from hostler.routing.queue import Done, Waiter

NOBODY: frozenset[str] = frozenset()
_OK: Final = Outcome.OK


class Router:
    """Who serves the next request of a model. One event loop; every method returns at once."""

    def __init__(
        self,
        *,
        make_policy: Callable[[ModelView], Policy] = make_policy,
        queue_length: int = 128,
        queue_wait_s: float = 30.0,
        eject_s: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.clock = clock
        self.queue_wait_s = queue_wait_s
        self.health = Health(eject_s=eject_s, clock=clock)
        self._queue_length = queue_length
        self._loads = Loads()
        self.answered_s: dict[str, float] = {}  # by instance: when a request was answered last
        self.known = Pools(make_policy, self._loads, self.health, self.answered_s)
        self.peers: Peers | None = None  # nobody else lends these slots

    @property
    def load(self) -> Mapping[str, int]:
        """Requests in flight by instance id; an idle instance is absent."""
        return self._loads.in_flight

    def models(self) -> tuple[ModelView, ...]:
        return tuple(self.known.picture.models.values())

    def policies(self) -> Mapping[str, Policy]:
        """What chooses, by model."""
        return {name: pool.policy for name, pool in self.known.by_model.items()}

    def model(self, name: str) -> ModelView | None:
        """The model of this name or alias."""
        pool = self.known.named.get(name)
        return pool.model if pool is not None else None

    def waiting(self, name: str) -> int:
        """How many requests wait for a slot of this model."""
        pool = self.known.named.get(name)
        return len(pool.queue) if pool is not None else 0

    def usable(self, name: str) -> tuple[InstanceView, ...]:
        """The ready instances that probes have not found dead."""
        pool = self.known.named.get(name)
        if pool is None:
            return ()
        if not self.health:
            return pool.ready
        return tuple(i for i in pool.ready if not self.health.is_down(i.instance_id))

    def update(self, snapshot: Snapshot) -> None:
        """Take over a newer snapshot, whatever it has in common with the one before."""
        for pool in self.known.become(snapshot):
            self._serve_queue(pool)

    def take(self, change: Change) -> None:
        """Take a step from one snapshot to the next. Claims that are out stay valid until released."""
        for pool in self.known.take(change):
            self._serve_queue(pool)

    def join(self, peers: Peers | None) -> None:
        """From now on others lend slots of the same instances; None: not any more."""
        self.peers = peers
        if peers is not None:
            for instance_id, count in self._loads.in_flight.items():
                peers.note(instance_id, count)
        self.known.shared_by = peers.count if peers is not None else 1
        for pool in self.known.by_model.values():
            pool.shared_by = self.known.shared_by
            pool.look(self.load, peers)
        self.serve_all()

    def serve_all(self, *, is_late: bool = False) -> None:
        """Serve who waits: a slot may be free that was not ours to lend, or an instance may be back.

        is_late: other routers did not take what was left to them.
        """
        for pool in tuple(self.known.by_model.values()):
            if pool.queue:
                self._serve_queue(pool, ties=False, is_late=is_late)
            elif self.peers is not None:
                self.peers.note_waiting(pool.model.name, 0)

    def select(self, model: str, ask: Ask = ANYBODY) -> InstanceView:
        """Return the instance a claim would get now, without taking a slot. Raises as `claim`, but
        a model whose slots are all taken has an instance too.
        """
        pool = self._pool(model)
        places, policy = pool.places, pool.policy
        among = places.ready
        if self.health:
            usable = self.usable(model)
            healthy = [i for i in usable if not self.health.is_out(i.instance_id)]
            among = places.mask(i.instance_id for i in healthy or usable)
        if not among:
            raise pool.explain(NOBODY, self.health.is_down)
        if policy.wants_list:
            return policy.choose(places.each(among), self._loads, ask)
        return places.at(policy.pick(among, ask))

    def claim(self, model: str, ask: Ask = ANYBODY, *, exclude: Set[str] = NOBODY) -> Claim:
        """Take a slot now.

        exclude: ids of instances that must not be used.

        Raises:
            ModelNotFound, ModelLoading, NoReadyInstance: see the class of each.
            Busy: every slot is taken, or others wait already: `enqueue` serves whoever can be.
        """
        pool = self._pool(model)
        peers = self.peers
        if pool.queue or (
            peers is not None and peers.go_first(pool.model.name, pool.limits, ties=True)
        ):
            raise pool.busy(ask)
        return self._take(pool, ask, exclude)

    def enqueue(
        self,
        model: str,
        ask: Ask = ANYBODY,
        *,
        exclude: Set[str] = NOBODY,
        done: Done,
        is_owed: bool = False,
    ) -> Waiter:
        """Stand in the model's queue; `done` may be called before this returns.

        is_owed: it gave a slot back for others, so a full queue has a place for it.

        A full queue makes room for a key with less than its share, or of a higher class: the newest
        waiter of the key that has most waiting is told so in its place.

        Raises:
            Overloaded: the queue is full. ModelNotFound: no such model.
        """
        pool = self._pool(model)
        queue, told = pool.queue, pool.model.routing.queue_length
        length = self._queue_length if told is None else told
        if is_owed:
            length = max(length, len(queue) + 1)
        displaced = None
        if len(queue) >= length:
            displaced = queue.who_makes_room(ask) if length else None
            if displaced is not None:
                queue.remove(displaced)
            elif not pool.has_slot:
                raise pool.overloaded(f"{len(queue)} requests wait already", ask)
        waiter = Waiter(pool, ask, exclude, done)
        queue.add(waiter)
        if displaced is not None:
            displaced.done(pool.displaced(displaced.ask))
        self._serve_queue(pool)
        if len(queue) > length and queue.remove(waiter):  # a slot is free, but not for this one
            raise pool.overloaded(f"{len(queue)} requests wait already", ask)
        return waiter

    def wait_s(self, model: str) -> float:
        """How long a request of this model may stand in its queue."""
        pool = self.known.named.get(model)
        wait_s = pool.model.routing.queue_wait_s if pool is not None else None
        return self.queue_wait_s if wait_s is None else wait_s

    async def wait_claim(
        self,
        model: str,
        ask: Ask = ANYBODY,
        *,
        exclude: Set[str] = NOBODY,
        deadline_s: float | None = None,
    ) -> Claim:
        """Take a slot, or wait for one in its turn.

        deadline_s: seconds to wait at most; the configured queue wait when left out.

        Raises:
            Overloaded: the queue is full, or the wait was too long. Otherwise as `claim`.
        """
        try:
            return self.claim(model, ask, exclude=exclude)
        except Busy:
            pass
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Claim | HostlerError] = loop.create_future()

        def done(result: Claim | HostlerError) -> None:
            if not answer.done():
                answer.set_result(result)
            elif isinstance(result, Claim):
                result.release(Outcome.CLIENT_GONE)

        waiter = self.enqueue(model, ask, exclude=exclude, done=done)
        wait_s = self.wait_s(model) if deadline_s is None else deadline_s
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

    def note_probe(self, instance_id: str, is_good: bool) -> None:
        """An active probe answered, or did not."""
        if instance_id not in self.known.picture.instances:
            return
        self.health.probed(instance_id, is_good)
        for pool in tuple(self.known.by_model.values()):
            if pool.queue:
                self._serve_queue(pool)

    # Private

    def _pool(self, model: str) -> ModelPool:
        pool = self.known.named.get(model)
        if pool is None:
            raise ModelNotFound(f"model {model!r} is not known")
        return pool

    def _take(self, pool: ModelPool, ask: Ask, exclude: Set[str]) -> Claim:
        peers = self.peers
        if peers is not None:
            pool.look(self.load, peers)
        places = pool.places
        free = places.free
        if exclude or self.health:
            free = pool.free(exclude, self.health)
        if not free:
            raise pool.explain(exclude, self.health.is_down)
        policy = pool.policy
        if policy.wants_list:
            ready = pool.ready if free == places.ready else places.each(free)
            chosen = policy.choose(ready, self._loads, ask)
            place = places.place(chosen.instance_id)
        else:
            place = policy.pick(free, ask)
            chosen = places.at(place)
        instance_id, load = chosen.instance_id, self._loads.in_flight
        load[instance_id] = taken = load.get(instance_id, 0) + 1
        places.note(place, taken, chosen.concurrency)
        if peers is not None:
            peers.note(instance_id, taken)
        pool.in_flight += 1
        tokens = 0
        if policy.wants_tokens:
            tokens = ask.prompt_tokens
            outstanding = self._loads.prompt_tokens
            outstanding[instance_id] = reads = outstanding.get(instance_id, 0) + tokens
            policy.noted(place, reads)
        if policy.learns:
            policy.taken(chosen, ask)
        now_s = self.clock()
        claim = Claim(chosen, ask, now_s, policy.name, policy.why, tokens, self._take_back)
        claim.pool = pool
        return claim

    def _take_back(self, claim: Claim, outcome: Outcome, witness: bytes) -> None:
        pool = claim.pool
        assert pool is not None
        instance_id = claim.instance.instance_id
        load = self._loads.in_flight
        left = load[instance_id] - 1
        if left:
            load[instance_id] = left
        else:
            del load[instance_id]
        place = pool.places.place(instance_id)
        if place >= 0:
            pool.places.note(place, left, pool.limits.get(instance_id, 0))
        pool.in_flight -= 1
        peers = self.peers
        if peers is not None:
            peers.note(instance_id, left)
        if claim.tokens:
            outstanding = self._loads.prompt_tokens
            outstanding[instance_id] = reads = outstanding[instance_id] - claim.tokens
            if not reads:
                del outstanding[instance_id]
            if place >= 0:
                pool.policy.noted(place, reads)
        if outcome is _OK:
            now_s = self.clock()
            if place >= 0:
                self.answered_s[instance_id] = now_s
            pool.note_service(now_s - claim.since_s)
        if outcome is Outcome.UNUSED:
            pool.queue.refund(claim)
        elif pool.queue or claim.bill is not None:
            pool.queue.settle(claim)
        if place >= 0 and (outcome is not _OK or self.health):
            self._note(claim, pool, outcome, witness)
        if pool.queue:
            self._serve_queue(pool)
        elif peers is not None:
            peers.wake(pool.model.name)

    def _serve_queue(self, pool: ModelPool, *, ties: bool = True, is_late: bool = False) -> None:
        """Lend what is free, each in its turn; tell the rest when nothing can come.

        ties, is_late: see Peers.go_first and `serve_all`.
        """
        queue, peers = pool.queue, self.peers
        is_left = False  # to others who wait
        if peers is not None:
            pool.look(self.load, peers)
        if queue and (pool.has_slot or not pool.places.count):
            queue.begin_round()
            while (waiter := queue.next()) is not None:
                if peers is not None and not is_late:
                    is_left = peers.go_first(pool.model.name, pool.limits, ties=ties)
                    if is_left:
                        break
                try:
                    claim = self._take(pool, waiter.ask, waiter.exclude)
                except Busy:
                    if not waiter.exclude:
                        break
                    queue.pass_over(waiter)
                except HostlerError as error:
                    queue.remove(waiter)
                    waiter.done(error)
                else:
                    claim.bill = queue.serve(waiter)
                    waiter.done(claim)  # which may change the queue
        if peers is not None:
            can_wait = is_left or not pool.has_slot
            peers.note_waiting(pool.model.name, len(queue) if can_wait else 0)
            if not queue and pool.has_slot:
                peers.wake(pool.model.name)
        if queue and pool.afar.machines > 1:
            pool.afar.on_want()

    def _note(self, claim: Claim, pool: ModelPool, outcome: Outcome, witness: bytes) -> None:
        instance_id = claim.instance.instance_id
        match outcome:
            case Outcome.BUSY:
                self.health.back_off(instance_id, claim.back_off_s)
            case Outcome.OK | Outcome.CLIENT_ERROR:
                self.health.succeeded(instance_id)
            case Outcome.REFUSED | Outcome.LOST:
                self.health.failed(instance_id)
            case Outcome.UPSTREAM_STATUS:
                self.health.answered_5xx(instance_id, witness, (i.instance_id for i in pool.ready))
