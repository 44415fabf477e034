"""Accounts: who used how much of which model, on its way from this gateway to the controller's store.

Counted per request in a dictionary; sent off in batches, each of which the store takes once. What
the controller cannot take now is kept and sent again. A gateway that is killed loses what was not
sent yet: FLUSH_S of counts while a controller is there.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from hostler.app.telemetry import logger
from hostler.core.errors import ControllerUnavailable
from hostler.core.usage import HOUR_S, OTHER, UsageBatch, UsageCount
from hostler.gateway.usage import Used

FLUSH_S = 0.75
FAREWELL_S = 2.0  # for the last batch of a gateway that stops
PAIRS = 2_000  # of key and model told apart in an hour; the rest count as `other`
WAITING_ROWS = 20_000  # kept for a controller that is away
BATCH_ROWS = 5_000
_LAST_PAUSE_S = 5.0

log = logger(__name__)

Row = list[int]  # requests, failed, estimated, prompt, cached, completion
Send = Callable[[UsageBatch], Awaitable[None]]


class Accounts:
    """The counts of one gateway process."""

    def __init__(self, send: Send | None, clock: Callable[[], float] = time.time) -> None:
        """send: keeps a batch, or raises ControllerUnavailable. None: nobody keeps anything.

        clock: of the wall; only whole hours are read from it.
        """
        self._send = send
        self._clock = clock
        self._source = secrets.token_hex(8)
        self._seq = 0
        self._hour_s = int(clock()) // HOUR_S * HOUR_S
        self._rows: dict[tuple[str, str], Row] = {}  # of this hour, not sent yet
        self._waiting: dict[tuple[int, str, str], Row] = {}  # of hours before
        self._batch: UsageBatch | None = None  # under way; it may have been taken already
        self._is_away = False

    def add(self, key_id: str, model: str, used: Used | None, *, failed: bool) -> None:
        """Count one request that has ended."""
        row = self._rows.get((key_id, model))
        if row is None:
            row = self._new_row(key_id, model)
        row[0] += 1
        if failed:
            row[1] += 1
        if used is not None:
            if used.is_estimated:
                row[2] += 1
            row[3] += used.prompt
            row[4] += used.cached
            row[5] += used.completion

    async def run(self) -> None:
        """Send what there is, as long as the gateway lives."""
        pause_s = FLUSH_S
        while True:
            await asyncio.sleep(pause_s)
            self._turn_hour()
            is_sent = await self.flush()
            pause_s = FLUSH_S if is_sent else min(2 * pause_s, _LAST_PAUSE_S)

    async def flush(self) -> bool:
        """Send everything counted until now. False: it could not be sent, and is kept.

        What is counted while it is sent waits for the next flush: a busy gateway would never end
        this one, and have the store write a batch for every few requests.
        """
        is_last = False
        while not is_last and self._has_some:
            if self._send is None:
                self._rows.clear()
                self._waiting.clear()
                return True
            if self._batch is None:
                self._batch = self._next_batch()
                is_last = not self._waiting
            try:
                await self._send(self._batch)
            except ControllerUnavailable as error:
                if not self._is_away:
                    self._is_away = True
                    log.warning("usage.kept", why=error.message, rows=len(self._batch.counts))
                return False
            self._batch = None
            if self._is_away:
                self._is_away = False
                log.info("usage.sent", seq=self._seq)
        return True

    async def close(self) -> None:
        """Send the rest, as long as it does not take long."""
        is_sent = False
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while (is_sent := await self.flush()) and self._has_some:
                    pass
        if not is_sent:
            lost = self._batch.counts if self._batch is not None else ()
            rows = len(lost) + len(self._rows) + len(self._waiting)
            log.error("usage.lost", why="no controller took it in time", rows=rows)

    # Private

    @property
    def _has_some(self) -> bool:
        return self._batch is not None or bool(self._rows or self._waiting)

    def _new_row(self, key_id: str, model: str) -> Row:
        if len(self._rows) >= PAIRS:
            key_id = model = OTHER
        return self._rows.setdefault((key_id, model), [0] * 6)

    def _turn_hour(self) -> None:
        """Begin a new hour if it has struck; the one before waits under its own name."""
        hour_s = int(self._clock()) // HOUR_S * HOUR_S
        if hour_s == self._hour_s:
            return
        rows, self._rows = self._rows, {}
        for (key_id, model), row in rows.items():
            place = (self._hour_s, key_id, model)
            if place not in self._waiting and len(self._waiting) >= WAITING_ROWS:
                place = (self._hour_s, OTHER, OTHER)
            kept = self._waiting.setdefault(place, [0] * 6)
            kept[:] = [one + more for one, more in zip(kept, row, strict=True)]
        self._hour_s = hour_s

    def _next_batch(self) -> UsageBatch:
        counts: list[UsageCount] = []
        while self._waiting and len(counts) < BATCH_ROWS:
            place, row = self._waiting.popitem()
            counts.append(_count(*place, row))
        if not self._waiting:
            rows, self._rows = self._rows, {}
            counts += [_count(self._hour_s, *pair, row) for pair, row in rows.items()]
        self._seq += 1
        return UsageBatch(source=self._source, seq=self._seq, counts=tuple(counts))


# Private


def _count(hour_s: int, key_id: str, model: str, row: Row) -> UsageCount:
    requests, failed, estimated, prompt, cached, completion = row
    return UsageCount(
        hour_s=hour_s,
        key_id=key_id,
        model=model,
        requests=requests,
        failed=failed,
        estimated=estimated,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
    )
