"""SecondOpinion: goes and asks a worker that has stopped beating, before its silence counts for anything.

Beats may be lost while the worker serves (F23). On one machine asking costs a millisecond: the agent is asked
for its beat, the engine for its health. An engine that a gateway doubts is asked for a token (F05): only one
that owes an answer here, too, is given up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.core.fleet import Beat
from hostler.core.lifecycle import Signal, State
from hostler.core.snapshot import Endpoint
from hostler.engines.canary import owes_token
from hostler.registry.record import Record
from hostler.registry.registry import Registry, vouch
from hostler.wire.client import Response, UpstreamLost, fetch
from hostler.wire.identity import ClientContexts

log = logger(__name__)

STUCK = "its engine takes requests and answers none"
_LOOK_EVERY_S = 0.25
_ASK_TIMEOUT_S = 1.0
_ASKED = frozenset({State.READY, State.SUSPECT, State.DRAINING})


class SecondOpinion:
    """Asks the workers of this machine that are silent, and tells the registry what they said."""

    def __init__(
        self,
        registry: Registry,
        config: Config,
        agent_socket: Callable[[str], Path],
        *,
        clock: Callable[[], float],
        tls: Callable[[], ClientContexts | None] = lambda: None,
    ) -> None:
        """agent_socket: where the agent of an instance listens, by instance id.

        tls: who we are, for instances on other machines.
        """
        self._tls = tls
        self._registry = registry
        self._canary_timeout_s = config.gateway.canary_timeout_s
        self._agent_socket = agent_socket
        self._clock = clock
        self._asking: set[str] = set()
        self._told: set[str] = set()  # whose silence is in the log

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.SILENCE, self._loop())
            yield
            loop.cancel()

    async def ask(self, record: Record) -> None:
        """Ask one silent worker, its agent and its engine side by side: either may be stopped."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_agent(record.instance.instance_id))
            tasks.create_task(self._ask_engine(record))

    # Private

    async def _ask_agent(self, instance_id: str) -> None:
        answer = await _answer(self._agent_socket(instance_id), "POST", "/beat")
        try:
            if answer is not None:
                self._registry.beat(msgspec.json.decode(answer.body, type=Beat))
        except (HostlerError, msgspec.MsgspecError) as error:
            log.warning("silence.beat_refused", instance_id=instance_id, error=error)

    async def _ask_engine(self, record: Record) -> None:
        path = record.expected.endpoint.socket
        if path and await _answer(Path(path), "GET", "/health"):
            vouch(self._registry, record.instance.instance_id, self._clock())

    async def _loop(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                silent = {
                    r.instance.instance_id: r
                    for r in self._registry.silences.late()
                    if r.instance.state in _ASKED
                }
                for instance_id in silent.keys() - self._told:
                    log.warning("silence.asking", instance_id=instance_id)
                self._told = {i for i in self._told if self._registry.record(i)} | silent.keys()
                for instance_id in self._registry.doubts.drain():
                    tasks.create_task(self._ask_token(instance_id), name="silence.token")
                for instance_id in silent.keys() - self._asking:
                    self._asking.add(instance_id)
                    tasks.create_task(self._ask_once(silent[instance_id]), name="silence.ask")
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _ask_once(self, record: Record) -> None:
        try:
            await self.ask(record)
        finally:
            self._asking.discard(record.instance.instance_id)

    async def _ask_token(self, instance_id: str) -> None:
        """Ask a doubted engine for one token; without an answer it has failed."""
        record = self._registry.record(instance_id)
        if record is None:
            return
        is_stuck = False
        try:
            is_stuck = await owes_token(
                record.view, timeout_s=self._canary_timeout_s, tls=self._tls()
            )
        finally:
            self._registry.doubts.judged(record.instance.model_name, is_stuck=is_stuck)
        log.warning("silence.token", instance_id=instance_id, is_stuck=is_stuck)
        if is_stuck and self._registry.record(instance_id) is record:
            self._registry.post(instance_id, Signal.LOST, STUCK)


# Private


async def _answer(path: Path, method: str, target: str) -> Response | None:
    """Return a good answer, or None."""
    try:
        answer = await fetch(Endpoint(socket=str(path)), method, target, timeout_s=_ASK_TIMEOUT_S)
    except (UpstreamLost, TimeoutError, OSError):
        return None
    return answer if answer.status == 200 else None
