"""Host: one machine of a controller, as it is known now. The book of hosts alone changes it."""

import asyncio
from collections import deque
from math import inf

import msgspec

from hostler.app.tokens import StoredHost
from hostler.core.errors import StaleEpoch
from hostler.core.hosts import HostBeat, HostFacts, HostOrders, Order, Role, Standing
from hostler.core.snapshot import Endpoint
from hostler.registry.pace import SUSPECT_AFTER

RUNS_KEPT = 16  # of a host's earlier processes, whose late words are refused


class Host:
    """What is known of one host."""

    def __init__(self, host_id: str, role: Role) -> None:
        self.host_id = host_id
        self.role = role
        self.name = host_id
        self.facts = HostFacts(name=host_id)
        self.has_told_facts = False  # to this controller; those of the store may be old
        self.address = ""
        self.port = 0
        self.joined_at_s = 0.0
        self.is_draining = False  # by an operator's order
        self.says_draining = False
        self.has_left = False
        self.silence = Standing.ALIVE
        self.heard_at_s = 0.0
        self.vouched_at_s = (
            -inf
        )  # when one of its instances answered a gateway last, while it was silent
        self.asked_at_s = (
            -inf
        )  # when gateways were first asked whether they hear it, since it was heard
        self.is_heard = False  # by this controller
        self.interval_s = 0.0  # told at its last beat
        self.due_s = 0.0  # when the next is
        self.run_id = ""
        self.past_runs: deque[str] = deque(maxlen=RUNS_KEPT)
        self.seq = 0
        self.orders: HostOrders | None = None  # None: nobody may be told anything yet
        self.since: dict[str, int] = {}  # what is ordered: the version from which on
        self.missed: dict[str, int] = {}
        self.news = asyncio.Event()
        self.is_removed = False

    @property
    def standing(self) -> Standing:
        if self.has_left:
            return Standing.LEFT
        if self.silence is not Standing.ALIVE:
            return self.silence
        return Standing.DRAINING if self.is_draining or self.says_draining else Standing.ALIVE

    def is_late(self, now_s: float) -> bool:
        """Whether its beat is so late that somebody should go and ask."""
        patience_s = SUSPECT_AFTER * 0.6 * self.interval_s
        return bool(self.address) and not self.has_left and now_s - self.heard_at_s > patience_s

    def endpoint(self, instance_id: str = "") -> Endpoint:
        """Where its relay answers for an instance; for itself when none is named."""
        return Endpoint(
            host=self.address,
            port=self.port,
            tls=True,
            host_id=self.host_id,
            prefix=f"/i/{instance_id}" if instance_id else "",
        )

    def take(self, stored: StoredHost) -> None:
        """It is as it was written down."""
        self.role, self.name = stored.role, stored.name or stored.host_id
        self.address, self.port = stored.address, stored.port
        self.joined_at_s, self.is_draining = stored.joined_at_s, stored.is_draining
        if not self.has_told_facts:
            self.facts = msgspec.structs.replace(stored.facts, name=self.name)

    def take_facts(self, facts: HostFacts) -> None:
        """It is as it says, but for its name, which is the one it joined with."""
        self.has_told_facts = True
        self.facts = msgspec.structs.replace(facts, name=self.name)

    def number(self, incarnation: int, orders: tuple[Order, ...], refused: tuple[str, ...]) -> None:
        """Say what should be on it from now on: the next version of its orders."""
        version = self.orders.version + 1 if self.orders else 1
        self.orders = HostOrders(
            host_id=self.host_id,
            incarnation=incarnation,
            version=version,
            orders=orders,
            refused=refused,
        )
        self.since = {one.instance_id: self.since.get(one.instance_id, version) for one in orders}
        self.missed = {i: n for i, n in self.missed.items() if i in self.since}
        self.news.set()
        self.news = asyncio.Event()

    async def orders_after(self, version: int) -> HostOrders:
        """Wait for orders that are newer, and for the first ones to be known."""
        while self.orders is None or self.orders.version <= version:
            await self.news.wait()
        return self.orders

    def follow_run(self, beat: HostBeat) -> None:
        """A new process of a host counts its beats anew; the one before it is not heard any more.

        Raises:
            StaleEpoch: this is the one before.
        """
        if beat.run_id == self.run_id:
            return
        if beat.run_id in self.past_runs:
            raise StaleEpoch(f"host {self.host_id!r}: another process has taken its place")
        if self.run_id:
            self.past_runs.append(self.run_id)
        self.run_id, self.seq = beat.run_id, 0
