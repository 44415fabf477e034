"""The one loop that carries out the plan. It decides nothing (plan.py does) and touches no process."""

import asyncio
import heapq
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import LifeConfig
from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment
from hostler.core.lifecycle import Instance
from hostler.manager.plan import (
    GONE,
    Action,
    Crashes,
    Drain,
    Forget,
    Launch,
    Place,
    after_crash,
    plan,
)

log = logger(__name__)

# After a start gateways come back within so long. Before, they know nothing of who serves in the place of
# another: that one stays.
GATEWAYS_BACK_S = 1.0
_LOOK_EVERY_S = 1.0  # whatever woke us
_TRIES_S = 0.1  # next tries after crashes that are due so close together are one look
_ROUNDS = 10  # of those looks: after so many every model was looked at, whatever woke us


class Hands(Protocol):
    """What the loop orders. Each returns at once; what comes of it is seen in the registry."""

    def launch(self, deployment: Deployment, replica: int) -> None: ...
    def drain(self, instance_id: str, reason: str) -> None: ...
    def forget(self, instance_id: str) -> None: ...


class Reconciler:
    """Leads what is to what was wished."""

    def __init__(
        self,
        *,
        wishes: Callable[[], Sequence[Deployment]],
        instances: Callable[[], Sequence[Instance]],
        hands: Hands,
        life: LifeConfig,
        clock: Callable[[], float],
        has_room: Callable[[Deployment], bool] = lambda deployment: True,
        unheard: Callable[[], Collection[str]] = lambda: (),
        leaving: Callable[[], Collection[str]] = lambda: (),
        replacing: Callable[[], Collection[str]] = lambda: (),
        pinned: Callable[[], Collection[str]] = lambda: (),
        look_first: Callable[[], None] = lambda: None,
        of_model: Callable[[str], Sequence[Instance]] | None = None,
    ) -> None:
        """has_room: whether one process more of a model fits in memory beside what runs.

        unheard: the ids of adopted instances that have not spoken yet. leaving: of those on a machine that is
        to be emptied. replacing: of those that are to be replaced. pinned: of those that were brought by
        hand. look_first: called before each plan.
        of_model: those of `instances` that are of one model, found without a look at the others.
        """
        self._wishes = wishes
        self._instances = instances
        self._of_model = of_model or self._look_for
        self._hands = hands
        self._life = life
        self._clock = clock
        self._has_room = has_room
        self._unheard = unheard
        self._leaving = leaving
        self._replacing = replacing
        self._pinned = pinned
        self._look_first = look_first
        self._crashes: dict[Place, Crashes] = {}
        self._wake = asyncio.Event()
        self._gateways_back_at_s = clock()
        self._is_whole = True  # every model is to be looked at
        self._stirred: set[str] = set()  # the models of which a state has changed
        self._planned: dict[str, Deployment] = {}  # the wishes as they were at the last look
        self._again: set[str] = set()  # the models whose turn may come by time alone
        self._round: list[str] = []  # the models that this round has not come to yet
        self._share = 0  # of a round, in one look
        self._is_settling = False  # something was adopted and unheard, or leaving, at the last tick
        self._ticked_at_s = clock()
        # a heap: when a next try is due, and of which model
        self._tries: list[tuple[float, str]] = []

    def wake(self) -> None:
        """Look again soon, at every model: something has changed that may concern any."""
        self._is_whole = True
        self._wake.set()

    def stir(self, model: str) -> None:
        """Look again soon at a model: a state of one of its instances has changed, or who waits for it."""
        self._stirred.add(model)
        self._wake.set()

    def nudge(self) -> None:
        """Look again soon: a wish has changed, or hands have more to do."""
        self._wake.set()

    def crashed(self, instance: Instance, *, final: bool) -> Crashes:
        """Note that an instance failed; `final` when trying again cannot help.

        One of another specification than the wished one says nothing of that: it does not count, even
        when it dies late, after its change was taken back and forgiven.
        """
        place = (instance.worker_key, instance.replica)
        if any(_is_old(instance, one, gone=True) for one in self._wishes()):
            return Crashes()
        crashes = after_crash(
            self._crashes.get(place, Crashes()), self._clock(), self._life, random.random()
        )
        if final:
            crashes = Crashes(at_s=crashes.at_s, next_try_s=crashes.next_try_s, verdict=True)
        self._crashes[place] = crashes
        heapq.heappush(self._tries, (crashes.next_try_s, instance.model_name))
        return crashes

    def defer(self, instance: Instance, wait_s: float) -> None:
        """Note that an instance went with its machine: no fault of its own, and replaced so much later."""
        place = (instance.worker_key, instance.replica)
        known = self._crashes.get(place, Crashes())
        next_try_s = max(known.next_try_s, self._clock() + wait_s)
        self._crashes[place] = msgspec.structs.replace(known, next_try_s=next_try_s)
        heapq.heappush(self._tries, (next_try_s, instance.model_name))

    def crashes(self, worker_key: str, replica: int) -> Crashes:
        return self._crashes.get((worker_key, replica), Crashes())

    def has_verdict(self, worker_key: str) -> bool:
        """Whether a replica of this model was given up."""
        return any(c.verdict for place, c in self._crashes.items() if place[0] == worker_key)

    def has_crashed(self, worker_key: str) -> bool:
        """Whether a replica of this model failed lately and was not pardoned."""
        since_s = self._clock() - self._life.crash_window_s
        return any(
            at_s > since_s
            for place, crashes in self._crashes.items()
            if place[0] == worker_key
            for at_s in crashes.at_s
        )

    def pardon(self, worker_key: str, replica: int | None = None) -> None:
        """Forget the crashes of a model, or of one place: it was changed, or somebody asked to try again."""
        for place in [place for place in self._crashes if place[0] == worker_key]:
            if replica in (None, place[1]):
                del self._crashes[place]
        self.stir(_model_of(worker_key))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._gateways_back_at_s = self._clock() + GATEWAYS_BACK_S
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.RECONCILE, self._loop())
            yield
            loop.cancel()

    def look(self) -> list[Action]:
        """Plan once for every model and carry it out; return what was ordered."""
        self._is_whole = True
        return self.look_on()

    def look_on(self) -> list[Action]:
        """Plan for the models of which something may have changed, and carry it out.

        A model is planned from its own wish and instances, so looking at some is as good as at all.
        """
        self._look_first()
        self._tick()
        self._try_again()
        wishes = {deployment.name: deployment for deployment in self._wishes()}
        before, self._planned = self._planned, wishes
        stirred, self._stirred = self._stirred, set()
        if self._is_whole:
            self._is_whole = False
            return self._plan(list(wishes.values()), self._instances(), None)
        stirred |= {name for name, wish in wishes.items() if before.get(name) is not wish}
        stirred |= before.keys() - wishes.keys()
        if not stirred:
            return []
        wanted = [wishes[name] for name in sorted(stirred & wishes.keys())]
        seen = [instance for name in stirred for instance in self._of_model(name)]
        return self._plan(wanted, seen, stirred)

    # Private: the loop

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            self.look_on()
            await asyncio.sleep(0)  # whatever wakes it: others have their turn
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _pause_s(self) -> float:
        if not self._tries:
            return _LOOK_EVERY_S
        return min(_LOOK_EVERY_S, max(_TRIES_S, self._tries[0][0] - self._clock()))

    def _try_again(self) -> None:
        """Stir the models for which a next try is due."""
        while self._tries and self._tries[0][0] <= self._clock():
            self._stirred.add(heapq.heappop(self._tries)[1])

    def _tick(self) -> None:
        """Each second: stir what nothing else wakes us for."""
        now_s = self._clock()
        if now_s - self._ticked_at_s < _LOOK_EVERY_S:
            return
        self._ticked_at_s = now_s
        was_settling, self._is_settling = (
            self._is_settling,
            bool(self._unheard() or self._leaving()),
        )
        if was_settling or self._is_settling:
            self._is_whole = True
            return
        self._stirred |= self._again
        if not self._round:
            names = {one.model_name for one in self._instances()}
            self._round = sorted(names | self._planned.keys())
            self._share = -(-len(self._round) // _ROUNDS)
        for _ in range(min(self._share, len(self._round))):
            self._stirred.add(self._round.pop())

    def _plan(
        self, wishes: Sequence[Deployment], seen: Sequence[Instance], models: set[str] | None
    ) -> list[Action]:
        """Plan and carry out. models: those that are looked at; None: all."""
        by_key = {deployment.worker_key: deployment for deployment in wishes}
        replacing = self._replacing()
        changed = {
            i.worker_key
            for i in seen
            if _is_of_before(i, by_key) or (i.instance_id in replacing and i.worker_key in by_key)
        }
        cramped = {key for key in changed if not self._has_room(by_key[key])}
        actions = plan(
            wishes,
            seen,
            self._clock(),
            self._crashes,
            cramped,
            unheard=self._unheard(),
            leaving={*self._leaving(), *replacing},
            pinned=self._pinned(),
        )
        self._again = set() if models is None else self._again - models
        self._again |= {by_key[key].name for key in changed}
        if self._clock() < self._gateways_back_at_s:
            followed = {a.instance_id for a in actions if isinstance(a, Drain) and a.is_followed}
            self._again |= {one.model_name for one in seen if one.instance_id in followed}
            actions = [
                a for a in actions if not (isinstance(a, Drain) and a.instance_id in followed)
            ]
        for action in actions:
            try:
                self._carry_out(action, by_key)
            except Exception as error:  # boundary: one instance's trouble stops nobody else's
                log.error("reconcile.failed", action=repr(action), error=error)
                self._again |= {*self._planned, *(one.model_name for one in seen)}
        return actions

    def _look_for(self, model: str) -> list[Instance]:
        return [one for one in self._instances() if one.model_name == model]

    def _carry_out(self, action: Action, by_key: dict[str, Deployment]) -> None:
        match action:
            case Launch(worker_key=key, replica=replica, replaces=replaced):
                if replaced is not None:
                    self._hands.forget(replaced)
                self._hands.launch(by_key[key], replica)
            case Drain(instance_id=instance_id, reason=reason):
                self._hands.drain(instance_id, reason)
            case Forget(instance_id=instance_id):
                self._hands.forget(instance_id)


# Private


def _model_of(worker_key: str) -> str:
    return worker_key.rpartition("@")[0]


def _is_of_before(instance: Instance, by_key: Mapping[str, Deployment]) -> bool:
    deployment = by_key.get(instance.worker_key)
    return deployment is not None and _is_old(instance, deployment)


def _is_old(instance: Instance, deployment: Deployment, *, gone: bool = False) -> bool:
    """Whether a process of this deployment was made from another specification.

    gone: also one that has ended.
    """
    return (
        instance.worker_key == deployment.worker_key
        and instance.generation != deployment.process_generation
        and (gone or instance.state not in GONE)
    )
