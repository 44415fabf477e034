"""The one loop that carries out the plan. It decides nothing (plan.py does) and touches no process."""

import asyncio
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
_LOOK_EVERY_S = 1.0  # a crash's next try is found out by looking; everything else wakes the loop


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
        pinned: Callable[[], Collection[str]] = lambda: (),
        look_first: Callable[[], None] = lambda: None,
    ) -> None:
        """has_room: whether one process more of a model fits in memory beside what runs.

        unheard: the ids of adopted instances that have not spoken yet. leaving: of those on a machine that is
        to be emptied. pinned: of those that were brought by hand. look_first: called before each plan.
        """
        self._wishes = wishes
        self._instances = instances
        self._hands = hands
        self._life = life
        self._clock = clock
        self._has_room = has_room
        self._unheard = unheard
        self._leaving = leaving
        self._pinned = pinned
        self._look_first = look_first
        self._crashes: dict[Place, Crashes] = {}
        self._wake = asyncio.Event()
        self._gateways_back_at_s = clock()

    def wake(self) -> None:
        """Look again soon: a wish or a state has changed."""
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
        return crashes

    def defer(self, instance: Instance, wait_s: float) -> None:
        """Note that an instance went with its machine: no fault of its own, and replaced so much later."""
        place = (instance.worker_key, instance.replica)
        known = self._crashes.get(place, Crashes())
        next_try_s = max(known.next_try_s, self._clock() + wait_s)
        self._crashes[place] = msgspec.structs.replace(known, next_try_s=next_try_s)

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

    def pardon(self, worker_key: str) -> None:
        """Forget the crashes of a model: it was changed, or somebody asked to try again."""
        for place in [place for place in self._crashes if place[0] == worker_key]:
            del self._crashes[place]
        self.wake()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._gateways_back_at_s = self._clock() + GATEWAYS_BACK_S
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.RECONCILE, self._loop())
            yield
            loop.cancel()

    def look(self) -> list[Action]:
        """Plan once and carry it out; return what was ordered."""
        self._look_first()
        wishes, seen = self._wishes(), self._instances()
        by_key = {deployment.worker_key: deployment for deployment in wishes}
        changed = {i.worker_key for i in seen if _is_of_before(i, by_key)}
        cramped = {key for key in changed if not self._has_room(by_key[key])}
        actions = plan(
            wishes,
            seen,
            self._clock(),
            self._crashes,
            cramped,
            unheard=self._unheard(),
            leaving=self._leaving(),
            pinned=self._pinned(),
        )
        if self._clock() < self._gateways_back_at_s:
            actions = [a for a in actions if not (isinstance(a, Drain) and a.is_followed)]
        for action in actions:
            try:
                self._carry_out(action, by_key)
            except Exception as error:  # boundary: one instance's trouble stops nobody else's
                log.error("reconcile.failed", action=repr(action), error=error)
        return actions

    # Private: the loop

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            self.look()
            await asyncio.sleep(0)  # whatever wakes it: others have their turn
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

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
