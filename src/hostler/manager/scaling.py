"""Autoscaler: as many copies of a model as its load asks for, between the numbers that were allowed.

What gateways have in flight and in queues comes in each second. A number goes up when the load has asked
for more all through `up_s`, and down to the most that it asked for in `down_s`: the window of stabilization
of Kubernetes' HorizontalPodAutoscaler. It changes a wish and nothing else: the plan starts and drains.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from hostler.app.background import Background, begin
from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment, Wish
from hostler.core.errors import HostlerError
from hostler.core.lifecycle import State
from hostler.core.scaling import DemandReport, ModelDemand, ScalingRules, replicas_for
from hostler.core.worker import OperatorEvent
from hostler.manager.wishes import Wishes
from hostler.registry.registry import Registry

log = logger(__name__)

LOOK_EVERY_S = 1.0
FRESH_S = 5.0  # a gateway that has not told for so long is gone
SOURCES = 256  # gateways that are told apart


class Window:
    """What one model's load asked for lately. Monotonic seconds."""

    def __init__(self) -> None:
        self._asked: deque[tuple[float, int]] = deque()

    def decide(self, asked: int, now: int, rules: ScalingRules, at_s: float) -> int:
        """Return how many there should be. asked: by the load at this moment; now: wished until now."""
        seen = self._asked
        seen.append((at_s, asked))
        longest_s = max(rules.up_s, rules.down_s)
        while len(seen) > 1 and seen[1][0] <= at_s - longest_s:
            seen.popleft()
        began_s = seen[0][0]
        if at_s - began_s >= rules.up_s:
            least = min(many for when_s, many in seen if when_s >= at_s - rules.up_s)
            if least > now:
                return least
        if at_s - began_s >= rules.down_s:
            most = max(many for when_s, many in seen if when_s >= at_s - rules.down_s)
            if most < now:
                return most
        return rules.clamp(now)


class Autoscaler:
    """Hears of load, and changes how many are wished."""

    def __init__(
        self,
        *,
        wishes: Wishes,
        registry: Registry,
        own: Callable[[], Iterable[ModelDemand]],
        has_crashed: Callable[[str], bool],
        tell: Callable[[OperatorEvent], None],
        clock: Callable[[], float],
    ) -> None:
        """own: what the manager's own router has. has_crashed: does a replica of this worker key fail?"""
        self._wishes = wishes
        self._registry = registry
        self._own = own
        self._has_crashed = has_crashed
        self._tell = tell
        self._clock = clock
        self._reports: dict[str, tuple[float, DemandReport]] = {}  # by source
        self._has_gateways = False  # they have the load then, and what they do not say is not known
        self._windows: dict[str, tuple[int, Window]] = {}  # by model, with the generation it is of

    def take(self, report: DemandReport) -> None:
        """A gateway says what it has."""
        self._has_gateways = True
        if report.source in self._reports or len(self._reports) < SOURCES:
            self._reports[report.source] = (self._clock(), report)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look each second while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.SCALING, self._loop())
            yield
            loop.cancel()

    async def look(self) -> None:
        """Decide for every model whose load decides."""
        now_s = self._clock()
        self._reports = {
            source: heard for source, heard in self._reports.items() if now_s - heard[0] < FRESH_S
        }
        scaled = [one for one in self._wishes.all() if _is_scaled(one)]
        self._windows = {
            one.name: kept
            for one in scaled
            if (kept := self._windows.get(one.name)) and kept[0] == one.generation
        }
        demands = self._demands() if scaled else {}
        for deployment in scaled:
            if (demand := demands.get(deployment.name)) is not None:
                await self._scale(deployment, demand, now_s)

    # Private

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except HostlerError as error:  # the store cannot take it now: the next look asks again
                log.warning("scaling.not_written", why=error.message)

    def _demands(self) -> dict[str, ModelDemand]:
        """Of all gateways together, by model; a model that nobody spoke of is not there."""
        found: dict[str, ModelDemand] = {}
        told = [one for _, report in self._reports.values() for one in report.models]
        own = [one for one in self._own() if one.in_flight or one.waiting or not self._has_gateways]
        for one in (*told, *own):
            before = found.get(one.model, ModelDemand(model=one.model))
            found[one.model] = ModelDemand(
                model=one.model,
                in_flight=before.in_flight + one.in_flight,
                waiting=before.waiting + one.waiting,
                waited_s=max(before.waited_s, one.waited_s),
            )
        return found

    async def _scale(self, deployment: Deployment, demand: ModelDemand, now_s: float) -> None:
        rules, now = deployment.scaling, deployment.wanted_instances
        asked = replicas_for(
            rules,
            demand,
            concurrency=deployment.concurrency,
            replicas=now,
            ready=self._ready(deployment),
        )
        _, window = self._windows.setdefault(deployment.name, (deployment.generation, Window()))
        wanted = window.decide(asked, now, rules, now_s)
        if wanted > now and self._has_crashed(deployment.worker_key):
            return  # more of what fails helps nobody
        if wanted == now or not await self._wishes.change(
            deployment.name, partial(_scaled, replicas=wanted)
        ):
            return
        load = f"{demand.in_flight} in flight, {demand.waiting} waiting"
        if demand.waiting:
            load += f" for up to {demand.waited_s:.1f} s"
        self._tell(
            OperatorEvent(
                kind="model.scaled",
                model=deployment.name,
                message=f"{now} -> {wanted} replicas: {load}, {deployment.concurrency} slots each",
                fields={"before": now, "replicas": wanted},
            )
        )

    def _ready(self, deployment: Deployment) -> int:
        return sum(
            record.instance.worker_key == deployment.worker_key
            and record.instance.state is State.READY
            for record in self._registry.of_model(deployment.name)
        )


# Private


def _scaled(deployment: Deployment, replicas: int) -> Deployment | None:
    """The wish with so many copies; its generation stays: no process and no rule is another."""
    if not _is_scaled(deployment):
        return None
    return msgspec.structs.replace(deployment, scaled=replicas)


def _is_scaled(deployment: Deployment) -> bool:
    """One that is being changed is left alone until that is done."""
    return (
        deployment.scaling.is_on and deployment.wish is Wish.RUNNING and deployment.fallback is None
    )
