"""Tells the controller, each second, what this gateway has of the models that are scaled by load."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from hostler.core.errors import HostlerError
from hostler.core.scaling import DemandReport, ModelDemand
from hostler.gateway.relays import Relays
from hostler.routing.demand import demand_of
from hostler.routing.router import Router

EVERY_S = 1.0

Tell = Callable[[DemandReport], Awaitable[None]]


class DemandTeller:
    """Of one gateway process."""

    def __init__(
        self, router: Router, relays: Relays, tell: Tell | None, clock: Callable[[], float]
    ) -> None:
        """tell: takes a report, or raises a HostlerError; None: nobody wants one."""
        self._router = router
        self._relays = relays
        self._tell = tell
        self._clock = clock
        self._source = secrets.token_hex(8)

    async def run(self) -> None:
        """Tell until cancelled. A controller that is away decides nothing, so nothing is kept for it."""
        while True:
            await asyncio.sleep(EVERY_S)
            models = self.look()
            if models and self._tell is not None:
                try:
                    await self._tell(DemandReport(source=self._source, models=models))
                except HostlerError:
                    continue

    def look(self) -> tuple[ModelDemand, ...]:
        """What there is now."""
        found = {one.model: one for one in demand_of(self._router)}
        if any(one.waiting for one in found.values()):
            now_s = self._clock()
            for relay in self._relays.under_way:
                one = found.get(relay.timeline.model)
                waits_s = relay.timeline.waits_s(now_s)
                if one is not None and waits_s > one.waited_s:
                    found[one.model] = msgspec.structs.replace(one, waited_s=waits_s)
        return tuple(found.values())
