"""Arrival: from an empty process list to every wished model ready, or given up, with each step shown."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import msgspec

from hostler.admin.messages import EventList, ModelList, ModelStatus, TicketCreated
from hostler.app.config import default_state_dir
from hostler.app.paths import StatePaths
from hostler.app.record import read_standby
from hostler.core.deployment import Wish
from hostler.core.errors import StartupError
from hostler.core.snapshot import Endpoint
from hostler.core.worker import OperatorEvent
from hostler.wire.client import fetch
from hostler.wire.sink import UpstreamLost

T = TypeVar("T")

_LOOK_EVERY_S = 0.1
_CONTROLLER_WITHIN_S = 30.0
_ANSWER_S = 10.0
_LEADS_WITHIN_S = 5.0  # a controller on a shared store, when nobody else does


class Shown(Protocol):
    """Takes events as they come."""

    def show(self, event: OperatorEvent) -> None: ...


class Arrival:
    """Follows the controller's events until nothing more is to be waited for."""

    def __init__(
        self,
        paths: StatePaths,
        shown: Shown,
        failing: Callable[[str], str | None],
    ) -> None:
        """failing: says why a process of this role cannot start, None while it may."""
        self._failing = failing
        self._paths = paths
        self._shown = shown
        self._endpoint = Endpoint(socket=str(paths.admin_socket))
        self.ticket = ""  # for the link to the console
        self._gateway = Endpoint(socket=str(paths.gateway_socket))
        self.is_first_start = not paths.admin_key.exists()
        self.is_default_state = paths.state_dir == default_state_dir()
        self.models: tuple[ModelStatus, ...] = ()
        self.failed: dict[str, str] = {}
        self.standby = ""  # why the controller here does not lead, when that stays so

    @property
    def wanted(self) -> int:
        return len(self.models)

    @property
    def ready(self) -> int:
        return sum(model.ready >= model.wanted for model in self.models)

    def name_of(self, worker_type: str) -> str | None:
        """The first model of a type."""
        return next((m.name for m in self.models if m.worker_type.value == worker_type), None)

    async def wait(self) -> None:
        """Return when each wished model is ready or given up, or when this controller stands by.

        Raises:
            StartupError: the controller or the gateway does not come up.
        """
        seq = await self._first_seq()
        while not self.standby:
            seq = await self._show_events(seq)
            if await self._is_settled():
                await self._show_events(seq)
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def until_it_leads(self) -> None:
        """Wait as long as the controller stands by."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if read_standby(self._paths) is None:
                return

    async def wait_again(self, shown: Shown) -> None:
        """As `wait`, once it does not stand by any more."""
        self.standby, self._shown = "", shown
        await self.wait()

    async def take_ticket(self) -> None:
        """Ask for what a link to the console carries. Without an answer there is no link."""
        made = await self._ask("/api/v1/session/tickets", TicketCreated, method="POST")
        self.ticket = made.ticket if made is not None else ""

    # Private

    async def _first_seq(self) -> int:
        """Wait for the controller; return the number of the last event before its start. One that stands
        by for another has none.
        """
        try:
            async with asyncio.timeout(_CONTROLLER_WITHIN_S):
                while True:
                    found = await self._ask("/api/v1/events?after=0&limit=1", EventList)
                    if found is not None:
                        return await self._seq_of_start()
                    if self._stands_by():
                        return 0
                    if (why := self._failing("controller")) is not None:
                        raise StartupError(f"the controller does not start: {why}")
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError as error:
            raise StartupError(
                f"the controller did not come up within {_CONTROLLER_WITHIN_S:g} s; "
                f"its log: {self._paths.logs_dir / 'controller.log'}"
            ) from error

    def _stands_by(self) -> bool:
        """Whether another controller leads: one whose lease has only to run out does not for long."""
        record = read_standby(self._paths)
        if record is None or time.time() - record.since_at_s < _LEADS_WITHIN_S:
            return False
        self.standby = record.text
        return True

    async def _seq_of_start(self) -> int:
        seq = 0
        while (
            found := await self._ask(f"/api/v1/events?after={seq}&limit=1000", EventList)
        ) and found.events:
            starts = [e.seq for e in found.events if e.kind == "manager.start"]
            seq = max(starts) if starts else found.next
            if starts and len(found.events) < 1000:
                return seq
        return seq

    async def _show_events(self, seq: int) -> int:
        found = await self._ask(f"/api/v1/events?after={seq}&limit=1000", EventList)
        if found is None:
            return seq
        for event in found.events:
            self._shown.show(event)
        return found.next

    async def _is_settled(self) -> bool:
        found = await self._ask("/api/v1/models", ModelList)
        if found is None:
            return False
        self.models = tuple(m for m in found.models if m.deployment.wish is Wish.RUNNING)
        self.failed = {
            m.name: m.reason
            for m in self.models
            if m.ready < m.wanted and m.states.get("failed", 0) >= m.wanted - m.ready
        }
        waiting = [m for m in self.models if m.ready < m.wanted and m.name not in self.failed]
        if waiting:
            return False
        return await self._gateway_answers()

    async def _gateway_answers(self) -> bool:
        with suppress(UpstreamLost):
            answer = await fetch(self._gateway, "GET", "/ready", timeout_s=_ANSWER_S)
            return answer.status == 200 or bool(self.failed)
        if (why := self._failing("gateway")) is not None:
            raise StartupError(f"the gateway does not start: {why}")
        return False

    async def _ask(self, path: str, kind: type[T], method: str = "GET") -> T | None:
        """One question to the controller; None while it does not answer."""
        try:
            key = self._paths.admin_key.read_text().strip()
            answer = await fetch(
                self._endpoint,
                method,
                path,
                headers=[(b"authorization", b"Bearer " + key.encode())],
                timeout_s=_ANSWER_S,
            )
        except (UpstreamLost, OSError):
            return None
        if answer.status not in (200, 201):
            return None
        return msgspec.json.decode(answer.body, type=kind)
