"""HostSilence: goes and asks a host that has stopped beating, before its silence counts for anything.

Its relay is asked for the same beat. It is on another path than the beats, so one of the two may be cut.
Gateways are asked too, in the answers to what they report: their lines to it are others than ours.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import msgspec

from hostler.app.background import Background, begin
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.core.hosts import HostBeat
from hostler.registry.host import Host
from hostler.registry.hosts import LOOK_EVERY_S, HostBook
from hostler.wire.client import UpstreamLost, fetch
from hostler.wire.identity import ClientContexts

log = logger(__name__)

_ASK_TIMEOUT_S = 1.0
_AT_ONCE = 64  # hosts asked side by side


class HostSilence:
    """Asks silent hosts, each once at a time."""

    def __init__(
        self,
        hosts: HostBook,
        clock: Callable[[], float],
        tls: Callable[[], ClientContexts | None],
    ) -> None:
        """tls: who we are; None: nobody can be asked."""
        self._tls = tls
        self._hosts = hosts
        self._clock = clock
        self._asking: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.HOST_SILENCE, self._loop())
            yield
            loop.cancel()

    async def ask(self, host: Host) -> bool:
        """Ask one host at its relay; True: it has answered, and its beat was taken."""
        if (tls := self._tls()) is None:
            return False
        try:
            answer = await fetch(
                host.endpoint(), "POST", "/host/beat", timeout_s=_ASK_TIMEOUT_S, tls=tls
            )
            if answer.status != 200:
                return False
            self._hosts.beat(host.host_id, msgspec.json.decode(answer.body, type=HostBeat))
        except (UpstreamLost, TimeoutError, OSError):
            return False
        except (HostlerError, msgspec.MsgspecError) as error:
            log.warning("hosts.beat_refused", host_id=host.host_id, why=str(error))
            return False
        return True

    def ask_gateways(self) -> list[str]:
        """The hosts that a gateway is asked for now: does it hear them?"""
        late, now_s = self._late(), self._clock()
        for host in late:
            host.asked_at_s = now_s if host.asked_at_s == -inf else host.asked_at_s
        return [host.host_id for host in late]

    def vouch(self, host_id: str) -> None:
        """One of its instances has answered a gateway just now: the line that is cut is ours (F23)."""
        host = self._hosts.known(host_id)
        if host is not None:
            host.vouched_at_s, host.asked_at_s = self._clock(), -inf

    # Private

    def _late(self) -> list[Host]:
        now_s = self._clock()
        return [host for host in self._hosts.hosts() if host.is_late(now_s)]

    async def _loop(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                for host in self._late():
                    if host.host_id not in self._asking and len(self._asking) < _AT_ONCE:
                        self._asking.add(host.host_id)
                        tasks.create_task(self._ask_once(host), name="hosts.ask")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _ask_once(self, host: Host) -> None:
        try:
            await self.ask(host)
        finally:
            self._asking.discard(host.host_id)
