"""The tasks that a process needs all its life. One that dies takes its process along, loudly.

Half a process would go on with what is no longer true: its supervisor starts a whole one. For tests:
with `HOSTLER_FAULTS=<folder>` in its environment, a file there that is named as a task breaks that
task, once, where it waits.
"""

import asyncio
from asyncio import CancelledError, TaskGroup
from collections.abc import Coroutine, Generator
from enum import StrEnum
from pathlib import Path
from typing import Any

from hostler.app.config import environment
from hostler.app.telemetry import logger

FAULTS_VARIABLE = "HOSTLER_FAULTS"

log = logger(__name__)

Work = Coroutine[Any, Any, object]


class Background(StrEnum):
    """Every such task, by process."""

    # controller
    REGISTRY = "registry.judge"  # judges silence
    SERVERS = "servers.probe"  # asks servers given by URL
    SILENCE = "silence.look"  # asks silent workers
    HOSTS = "hosts.judge"  # judges the silence of other machines
    HOST_SILENCE = "hosts.ask"  # asks silent machines
    RECONCILE = "reconcile"  # carries the plan out
    ROUTER = "router.follow"  # keeps the manager's own router at the newest snapshot
    REFUSALS = "refusals.keep"  # writes down for the relay which gateways were removed
    CERTIFICATE = "certificate.keep"  # makes this machine's certificate anew in time
    LOGS = "logs.keep"  # keeps log files bounded
    PLACES = "ray.places"  # asks Ray for places, and keeps host processes there
    SCALING = "scaling"  # decides by load how many copies there are
    # host
    HOST_ORDERS = "host.orders"  # hears what should be
    HOST_BEATS = "host.beats"  # tells what is
    HOST_OFFER = "host.brought"  # of a worker that was brought by hand
    HOST_RENEWAL = "host.renewal"  # of its certificate
    HOST_LOOK = "host.look"  # leads what is to what should be
    # relay
    REFUSED = "relay.refused"  # hears which gateways were removed
    # gateway
    MIRROR = "gateway.mirror"  # follows the controller
    PROBE = "gateway.probe"  # asks instances in doubt
    ACCOUNTS = "gateway.accounts"  # tells the controller what was used
    SWEEP = "gateway.sweep"  # keeps deadlines
    DOUBT = "gateway.doubt"  # asks engines that say nothing
    GATEWAY_RENEWAL = "gateway.renewal"  # of the certificate of one on another machine
    DEMAND = "gateway.demand"  # tells the controller of load
    LOADS = "gateway.loads"  # counts slots with gateways of other machines
    # worker
    LIFE = "agent.live"  # holds the engine and the three below
    REPORT = "agent.report"  # registers and beats
    ENGINE_PROBE = "agent.probe"  # asks the engine
    ENGINE_WATCH = "agent.watch"  # sees the engine's end


class InjectedFault(RuntimeError):
    """What a test puts into a task."""


def begin(tasks: TaskGroup, name: Background, work: Work) -> asyncio.Task[object]:
    """Start one of these tasks in a group. Its death is told at once and ends the group."""
    folder = environment(FAULTS_VARIABLE)
    task = tasks.create_task(
        _breakable(work, Path(folder, name)) if folder else work, name=name.value
    )
    task.add_done_callback(_tell_death)
    return task


# Private

_LOOK_S = 0.05


def _tell_death(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background.died", task=task.get_name(), error=error)


async def _breakable(work: Work, order: Path) -> object:
    """Do the work until it ends, or until the file is there."""
    broken = _Broken(work)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def look() -> None:
        try:
            order.unlink()  # one process takes the order, whoever is first
        except OSError:
            timers[:] = [loop.call_later(_LOOK_S, look)]
            return
        broken.is_due = True
        task.cancel()

    look()
    try:
        return await broken
    finally:
        for timer in timers:
            timer.cancel()


class _Broken:
    """Awaits some work; a cancellation that is due becomes a fault inside of it."""

    def __init__(self, work: Work) -> None:
        self.is_due = False
        self._work = work

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited = inner.send(None) if error is None else self._throw(inner, error)
            except StopIteration as end:
                return end.value
            error = None
            try:
                yield waited
            except BaseException as thrown:  # boundary: whatever it is, it is meant for the work
                error = thrown

    def _throw(self, inner: Generator[Any, Any, object], error: BaseException) -> object:
        if self.is_due and isinstance(error, CancelledError):
            self.is_due = False
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            error = InjectedFault("a fault that a test asked for")
        return inner.throw(error)
