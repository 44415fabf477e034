"""What a worker says to its controller, and what it makes of silence there."""

import asyncio
import os
import random
import time
from collections.abc import Callable

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import ControllerUnavailable, HostlerError, StaleEpoch, UnknownInstance
from hostler.core.fleet import Beat, BeatAnswer, Departure, Registration, WorkerSpec
from hostler.core.snapshot import REPORTED
from hostler.engines.base import Started
from hostler.registry.client import RegistryClient

log = logger(__name__)

RETRY_S = 0.5  # between tries to reach an absent controller
ORPHAN_DRAIN_S = 5.0  # nobody is left to send requests


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """Why and how the worker leaves. reason "": as asked."""

    exit_code: int = 0
    reason: str = ""
    code: str = ""  # of the error behind the reason
    drain_s: float = 0.0


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How the worker is at this moment."""

    engine_ok: bool
    is_leaving: bool
    in_flight: int
    memory_bytes: int


class Reporter:
    """Registers and beats, as often as the controller asks; outlives it for a while."""

    def __init__(
        self,
        spec: WorkerSpec,
        condition: Callable[[], Condition],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_registered = False
        self.is_refused = False  # the controller has another process for this instance, or none
        self.beats = 0
        self._spec = spec
        self._condition = condition
        self._clock = clock
        self._client = RegistryClient(spec.registry_socket)
        self._news = asyncio.Event()
        self._heard_at_s = clock()

    def hurry(self) -> None:
        """Beat at once: something has changed."""
        self._news.set()

    def asked(self) -> Beat:
        """The beat for a controller that came for it, because none arrived there. It lives, so we do."""
        self._heard_at_s = self._clock()
        return self._next_beat()

    async def run(self, started: Started) -> Ending:
        """Report until this worker is not wanted any more, or nobody is left who could want it."""
        self._heard_at_s = self._clock()
        while True:
            wait_s = RETRY_S * random.uniform(0.8, 1.2)
            registering = not self.is_registered
            self._news.clear()
            try:
                answer = await (self._register(started) if registering else self._beat())
            except StaleEpoch as error:
                self.is_refused = True
                return Ending(reason=f"{error.code}: {error.message}")
            except UnknownInstance as error:
                if registering:
                    self.is_refused = True
                    return Ending(reason=f"{error.code}: {error.message}")
                self.is_registered = False  # a new controller: it may adopt us
                continue
            except ControllerUnavailable:
                self.is_registered = False
                if self._is_orphan():
                    drain_s = min(self._spec.drain_timeout_s, ORPHAN_DRAIN_S)
                    return Ending(reason="no controller", drain_s=drain_s)
            else:
                self._heard_at_s = self._clock()
                self.is_registered = registering or answer.registered
                wait_s = answer.next_beat_s if self.is_registered else 0.0
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def say_goodbye(self, ending: Ending) -> None:
        """Tell the controller why this worker leaves, if it can be told. One that was refused is
        silent: its words would be taken for those of the process that has its identity.
        """
        if self.is_refused:
            return
        departure = Departure(
            instance_id=self._spec.instance_id,
            epoch=self._spec.epoch,
            secret=self._spec.secret,
            reason=ending.reason,
            code=ending.code,
        )
        try:
            await self._client.deregister(departure)
        except HostlerError as error:
            log.info("worker.departure_unheard", code=error.code)

    # Private

    def _is_orphan(self) -> bool:
        """Has there been no controller for `orphan_grace_s`?

        One that holds its socket is there, however slow or stopped it is (F22), and so is one that
        comes to ask (F23): ending the workers would make its trouble everybody's.
        """
        if self._client.is_held():
            self._heard_at_s = self._clock()
        return self._clock() - self._heard_at_s > self._spec.orphan_grace_s

    async def _register(self, started: Started) -> BeatAnswer:
        condition = self._condition()
        answer = await self._client.register(
            Registration(
                protocol=REPORTED,
                instance_id=self._spec.instance_id,
                epoch=self._spec.epoch,
                secret=self._spec.secret,
                pid=os.getpid(),
                endpoint=started.endpoint,
                upstream_model=started.upstream_model,
                metadata=started.metadata,
                concurrency=self._spec.concurrency,
                memory_bytes=condition.memory_bytes,
                draining=condition.is_leaving,
            )
        )
        log.info("worker.registered", instance_id=self._spec.instance_id)
        if not condition.engine_ok or condition.is_leaving:
            self.hurry()  # the registration says ready: let the next beat follow at once
        return answer

    async def _beat(self) -> BeatAnswer:
        return await self._client.beat(self._next_beat())

    def _next_beat(self) -> Beat:
        self.beats += 1
        condition = self._condition()
        return Beat(
            instance_id=self._spec.instance_id,
            epoch=self._spec.epoch,
            secret=self._spec.secret,
            seq=self.beats,
            engine_ok=condition.engine_ok,
            draining=condition.is_leaving,
            in_flight=condition.in_flight,
            memory_bytes=condition.memory_bytes,
        )
