"""PaperHost: a host that speaks the words of the control port and whose workers exist on paper only.

For tests of a controller and for fleets larger than a machine. It does what a list of orders says, at once.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from hostler.core.hosts import (
    HostBeat,
    HostBeatAnswer,
    HostFacts,
    HostOrders,
    InstanceReport,
    Order,
    OrderWish,
)
from hostler.core.lifecycle import State
from hostler.core.model import ModelMetadata
from hostler.core.snapshot import Endpoint
from hostler.wire.client import Response, UpstreamLost, UpstreamStatus, fetch, stream

JSON = ((b"content-type", b"application/json"),)
Headers = tuple[tuple[bytes, bytes], ...]


@dataclass
class PaperWorker:
    """One worker that does not exist. told: its full report has been sent."""

    order: Order
    state: State = State.STARTING
    reason: str = ""
    error_code: str = ""
    told: bool = False
    engine_ok: bool = True

    def report(self, *, full: bool) -> InstanceReport:
        order = self.order
        has_loaded = self.state in (State.READY, State.SUSPECT)
        metadata = ModelMetadata(model=order.model_name, worker_type=order.worker_type)
        return InstanceReport(
            instance_id=order.instance_id,
            epoch=order.epoch,
            state=self.state,
            reason=self.reason,
            error_code=self.error_code,
            pid=1000 + order.epoch,
            metadata=metadata if has_loaded and full else None,
            engine_ok=self.engine_ok,
        )


@dataclass
class PaperHost:
    """One host. Cut off: it says and hears nothing, and what it has goes on.

    becomes: the state of a worker once it was ordered to run. headers: sent with every request.
    """

    control: Endpoint
    host_id: str
    facts: HostFacts
    headers: Headers = ()
    becomes: Callable[[Order], State] = lambda order: State.READY
    workers: dict[str, PaperWorker] = field(default_factory=dict)
    is_cut: bool = False
    run_id: str = ""
    seq: int = 0
    known: tuple[int, int] = (0, 0)  # the newest orders
    heard: list[HostOrders] = field(default_factory=list)  # all of them, as they came
    ended: list[str] = field(default_factory=list)  # ids of those that the list did not name
    is_draining: bool = False
    is_busy: bool = False  # what should drain does not get done
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["PaperHost"]:
        """Hear orders and beat while the block lasts. Its workers stay, as on a machine that is let go."""
        self.run_id, self.seq = secrets.token_hex(4), 0
        async with asyncio.TaskGroup() as tasks:
            both = [
                tasks.create_task(self._hear(), name="paper.orders"),
                tasks.create_task(self._beat(), name="paper.beats"),
            ]
            try:
                yield self
            finally:
                for task in both:
                    task.cancel()

    def take(self, orders: HostOrders) -> None:
        """Do what a list says, if it is newer than what is known."""
        self.heard.append(orders)
        if (orders.incarnation, orders.version) <= self.known:
            return
        self.known = (orders.incarnation, orders.version)
        named = {one.instance_id: one for one in orders.orders}
        for instance_id in self.workers.keys() - named.keys():
            del self.workers[instance_id]
            self.ended.append(instance_id)
        for instance_id, order in named.items():
            mine = self.workers.get(instance_id)
            if mine is None and order.wish is OrderWish.RUN:
                self.workers[instance_id] = PaperWorker(order, self.becomes(order))
            elif mine is not None and order.wish is OrderWish.DRAIN and self.is_busy:
                mine.state = State.DRAINING
            elif mine is not None and order.wish is not OrderWish.RUN:
                mine.state = State.STOPPED
        self._news.set()

    def change(self) -> None:
        """Beat soon: something of a worker was changed by hand."""
        self._news.set()

    def next_beat(self) -> HostBeat:
        """What it would say now."""
        self.seq += 1
        reports = tuple(one.report(full=not one.told) for one in self.workers.values())
        for one in self.workers.values():
            one.told = one.state in (State.READY, State.SUSPECT)
        return HostBeat(
            host_id=self.host_id,
            run_id=self.run_id,
            seq=self.seq,
            incarnation=self.known[0],
            version=self.known[1],
            draining=self.is_draining,
            facts=self.facts if self.seq == 1 else None,
            instances=reports,
        )

    async def say(self, beat: HostBeat) -> Response:
        """Send one beat, and heed the answer."""
        body = msgspec.json.encode(beat)
        answer = await self.ask("POST", "/host/beat", body)
        if answer.status == 200:
            wanted = msgspec.json.decode(answer.body, type=HostBeatAnswer).wanted
            for instance_id in wanted:
                if instance_id in self.workers:
                    self.workers[instance_id].told = False
        return answer

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Ask the control port."""
        headers = (*JSON, *self.headers)
        return await fetch(self.control, method, path, headers=headers, body=body, timeout_s=5.0)

    # Private

    async def _beat(self) -> None:
        next_s = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(next_s):
                    await self._news.wait()
            self._news.clear()
            next_s = 0.2
            if self.is_cut:
                continue
            with suppress(UpstreamLost, OSError, TimeoutError):
                answer = await self.say(self.next_beat())
                if answer.status == 200:
                    decoded = msgspec.json.decode(answer.body, type=HostBeatAnswer)
                    next_s = decoded.next_beat_s if not decoded.wanted else 0.0

    async def _hear(self) -> None:
        while True:
            with suppress(UpstreamLost, UpstreamStatus, OSError, TimeoutError):
                await self._follow()
            await asyncio.sleep(0.1)

    async def _follow(self) -> None:
        pending = b""
        if self.is_cut:
            return
        parts = stream(
            self.control, "GET", "/host/orders", headers=self.headers, timeout_s=5.0, idle_s=5.0
        )
        async for data in parts:
            if self.is_cut:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line:
                    self.take(msgspec.json.decode(line, type=HostOrders))
