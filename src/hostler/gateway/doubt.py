"""Doubts: finds engines that take requests and say nothing (F05). Their health checks are good.

An instance of whose requests none has got a byte for `stall_s` is in doubt: no new requests, and a
canary. If that is answered, the slow requests are left alone, however slow. If not, they end or go
elsewhere, and the controller is told, which asks for itself before it does anything. Not here:
instances that answer no probe.
"""

import asyncio
from collections.abc import Awaitable, Callable
from math import inf

from hostler.app.config import GatewayConfig
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.core.fleet import Doubt
from hostler.core.snapshot import InstanceView
from hostler.engines.canary import owes_token
from hostler.gateway.attempt import Attempt
from hostler.gateway.lanes import credentials
from hostler.gateway.relays import Relays
from hostler.routing.router import Router

TICK_S = 1.0
AGAIN_S = 5.0  # between two canaries of an instance that has failed one
PROMPT_PATIENCE = (
    10.0  # times stall_s: a full engine that has begun no answer may be reading prompts
)

Teller = Callable[[Doubt], Awaitable[object]]

log = logger(__name__)


class Doubts:
    """Watches the requests under way. tell: the way to the controller, where there is one."""

    def __init__(
        self, config: GatewayConfig, router: Router, relays: Relays, tell: Teller | None
    ) -> None:
        self._config = config
        self._router = router
        self._relays = relays
        self._tell = tell
        self._moved_s: dict[
            str, float
        ] = {}  # by instance: when one of its requests last got a byte
        self._asking: set[str] = set()
        self._tick_s = TICK_S

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(self._tick_s)
                for instance in self._look():
                    self._asking.add(instance.instance_id)
                    tasks.create_task(self._ask(instance), name="canary")

    # Private

    def _look(self) -> list[InstanceView]:
        """Note what has moved; return the instances that are to be asked now."""
        now_s = self._router.clock()
        attempts: dict[str, list[Attempt]] = {}
        for relay in self._relays.under_way:
            attempt = relay.attempt
            if attempt is None or attempt.is_over:
                continue
            instance_id = attempt.claim.instance.instance_id
            attempts.setdefault(instance_id, []).append(attempt)
            attempt.catch_up()
            if attempt.is_moving or attempt.is_paused:  # a client that reads slowly is no sign
                attempt.has_begun = attempt.has_begun or attempt.is_moving
                attempt.is_moving = False
                self._moved_s[instance_id] = now_s
        self._moved_s = {i: at_s for i, at_s in self._moved_s.items() if i in attempts}
        self._tick_s = TICK_S
        return [
            its[0].claim.instance
            for instance_id, its in attempts.items()
            if instance_id not in self._asking and self._is_silent(instance_id, its, now_s)
        ]

    def _is_silent(self, instance_id: str, attempts: list[Attempt], now_s: float) -> bool:
        instance = attempts[0].claim.instance
        stall_s = self._stall_s(instance.model_name)
        self._tick_s = min(self._tick_s, stall_s / 4)
        heard_s = max(
            self._moved_s.get(instance_id, 0.0), self._router.answered_s.get(instance_id, 0.0)
        )
        oldest_s = min(attempt.claim.since_s for attempt in attempts)
        is_full = self._router.load.get(instance_id, 0) >= instance.concurrency
        if is_full and not any(attempt.has_begun for attempt in attempts):
            stall_s *= PROMPT_PATIENCE  # a canary would wait behind them
        return now_s - max(oldest_s, heard_s) >= stall_s

    def _stall_s(self, model_name: str) -> float:
        model = self._router.model(model_name)
        stall_s = model.routing.stall_s if model is not None else None
        return self._config.stall_s if stall_s is None else stall_s

    async def _ask(self, instance: InstanceView) -> None:
        """Send canaries until one is answered, the instance moves again, or it is gone."""
        instance_id, health = instance.instance_id, self._router.health
        began_s, is_stuck = self._router.clock(), False
        log.warning("doubt.began", instance_id=instance_id, model=instance.model_name)
        health.doubt(instance_id, is_stuck=False)
        try:
            while True:
                owes = await owes_token(
                    instance,
                    timeout_s=self._config.canary_timeout_s,
                    headers=credentials(instance.endpoint),
                    pool=self._relays.lanes.pool(instance),
                )
                if not owes or self._moved_s.get(instance_id, -inf) > began_s:
                    log.warning("doubt.gone", instance_id=instance_id, model=instance.model_name)
                    self._moved_s[instance_id] = self._router.clock()
                    return
                if is_stuck and not health.is_down(instance_id):
                    return  # it is no more
                health.doubt(instance_id, is_stuck=True)
                self._relays.cut(instance_id)
                if not is_stuck:
                    log.error("doubt.stuck", instance_id=instance_id, model=instance.model_name)
                is_stuck = True
                await self._tell_controller(instance)
                await asyncio.sleep(min(AGAIN_S, self._config.canary_timeout_s))
        finally:
            self._asking.discard(instance_id)
            health.trust(instance_id)
            self._router.serve_all()

    async def _tell_controller(self, instance: InstanceView) -> None:
        """Tell it each time: it may have been away, or busy with another one."""
        if self._tell is None or not instance.endpoint.is_ours:
            return
        try:
            await self._tell(Doubt(instance_id=instance.instance_id, epoch=instance.epoch))
        except HostlerError as error:
            log.warning("doubt.not_taken", instance_id=instance.instance_id, error=error)
