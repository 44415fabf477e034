"""How the process of a worker is ended: asked, given time, hastened, killed. Decides nothing."""

import asyncio
import signal
from collections.abc import Callable

from hostler.app.config import LifeConfig
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.process import ProcessHandle, wait_exit
from hostler.app.telemetry import logger
from hostler.manager.telling import Telling
from hostler.registry.record import Record

log = logger(__name__)

ANNOUNCE_S = 0.15  # from "draining" in the snapshot to SIGTERM: gateways hear of it first
_LOOK_EVERY_S = 1.0


async def drain_out(
    handle: ProcessHandle,
    record: Record,
    life: LifeConfig,
    telling: Telling,
    clock: Callable[[], float],
    announce_s: float = ANNOUNCE_S,
) -> None:
    """SIGTERM, the drain's time with what is still in flight told every second, SIGKILL."""
    await asyncio.sleep(announce_s)
    handle.terminate()
    crash_point(CrashPoint.STOP_SENT)
    end_s = clock() + life.drain_timeout_s + life.kill_grace_s
    while handle.alive() and (left_s := end_s - clock()) > 0:
        await wait_exit(handle, timeout_s=min(_LOOK_EVERY_S, left_s))
        if handle.alive():
            telling.draining(record.in_flight, life.drain_timeout_s)
    if handle.alive():
        log.warning("worker.killed", instance_id=record.instance.instance_id)
        handle.kill()


async def hurry_out(handle: ProcessHandle, life: LifeConfig) -> None:
    """A second SIGTERM: the worker leaves now, whatever it has. SIGKILL when it does not."""
    handle.terminate()
    await wait_exit(handle, timeout_s=life.kill_grace_s)
    handle.kill()


async def end_now(handle: ProcessHandle, life: LifeConfig) -> None:
    """SIGINT: the worker leaves now, whatever it has. SIGKILL when it does not."""
    handle.signal(signal.SIGINT)
    await wait_exit(handle, timeout_s=life.kill_grace_s)
    handle.kill()
