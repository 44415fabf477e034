"""Loans: asks an instance's worker to read a prompt once and to lend it to the slots of those who wait.

What that is, is the engine's business (engines/lending.py). Here: the two orders, and where they came to
nothing, so that requests there go as if there were no loans.
"""

from collections.abc import Callable, Iterable
from math import inf
from typing import TypeVar

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import BadRequest, EngineError, HostlerError
from hostler.core.snapshot import InstanceView
from hostler.engines.lending import (
    LEND_PATH,
    READ_PATH,
    LendOrder,
    PrefixLent,
    PrefixRead,
    ReadOrder,
)
from hostler.gateway.answers import JSON_FIELD
from hostler.gateway.job import Job
from hostler.gateway.lanes import PoolOf
from hostler.gateway.metrics import GatewayMetrics
from hostler.wire.client import Pool, UpstreamLost, fetch

Word = TypeVar("Word", PrefixRead, PrefixLent)

log = logger(__name__)

PAUSE_S = 30.0  # no loan at an instance where one has failed
_LEND_S = 15.0  # a save and some restores; measured: 10 to 100 ms


class Loans:
    """Those of one gateway."""

    def __init__(self, metrics: GatewayMetrics, clock: Callable[[], float], pool: PoolOf) -> None:
        """pool: to an instance on another host; its agent is reached by the same."""
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        self._paused_s: dict[str, float] = {}  # by instance: until when

    def forget(self, gone: Iterable[str]) -> None:
        """These instances are no more."""
        for instance_id in gone:
            self._paused_s.pop(instance_id, None)

    def allows(self, instance_id: str) -> bool:
        """Is a loan worth a try there?"""
        return not self._paused_s or self._paused_s.get(instance_id, 0.0) <= self._clock()

    async def lend(
        self,
        instance: InstanceView,
        job: Job,
        *,
        others: int,
        copies: Callable[[], int],
        timeout_s: float,
    ) -> int:
        """Have the prompt of this request read and lent; return to how many slots. 0: it came to nothing.

        others: requests that the engine works on beside it. copies: asked when it has been read.
        """
        route, body, pool = job.route, job.body, self._pool(instance)
        try:
            order = ReadOrder(route=route, body=body, others=others)
            read = await _ask(instance, READ_PATH, order, PrefixRead, timeout_s, pool)
            wanted = copies()
            if not wanted:
                return 0
            lending = LendOrder(slot=read.slot, tokens=read.tokens, copies=wanted)
            lent = await _ask(instance, LEND_PATH, lending, PrefixLent, _LEND_S, pool)
        except BadRequest:
            self._metrics.lent(instance.model_name, "refused")
            return 0
        except HostlerError as error:
            self._failed(instance, error)
            return 0
        self._metrics.lent(instance.model_name, "lent" if lent.slots else "no_slot")
        return lent.slots

    def in_vain(self, instance: InstanceView) -> None:
        """What was lent had to be read again: this model's state cannot be carried from slot to slot."""
        if self._paused_s.get(instance.instance_id) != inf:
            self._paused_s[instance.instance_id] = inf
            self._metrics.lent(instance.model_name, "in_vain")
            log.warning("loan.in_vain", instance_id=instance.instance_id, model=instance.model_name)

    # Private

    def _failed(self, instance: InstanceView, error: HostlerError) -> None:
        self._paused_s[instance.instance_id] = self._clock() + PAUSE_S
        self._metrics.lent(instance.model_name, "failed")
        log.warning("loan.failed", instance_id=instance.instance_id, error=error)


# Private


async def _ask(
    instance: InstanceView,
    path: str,
    order: ReadOrder | LendOrder,
    answer_type: type[Word],
    timeout_s: float,
    pool: Pool | None,
) -> Word:
    """Send an order to the instance's agent.

    Raises:
        BadRequest: this prompt cannot be lent. EngineError: the order was not carried out.
    """
    try:
        answer = await fetch(
            instance.endpoint.agent,
            "POST",
            path,
            headers=(JSON_FIELD,),
            body=msgspec.json.encode(order),
            timeout_s=timeout_s,
            pool=pool,
        )
        if answer.status == BadRequest.http_status:
            raise BadRequest(f"{path}: not with this prompt")
        if answer.status != 200:
            raise EngineError(f"{path}: status {answer.status}")
        return msgspec.json.decode(answer.body, type=answer_type)
    except (UpstreamLost, OSError, msgspec.MsgspecError) as error:
        raise EngineError(f"{path}: {error}") from error
