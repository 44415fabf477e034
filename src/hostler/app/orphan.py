"""What a process does when the one that supervised it is gone: go on for a while, then stop."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def orphan_watch(stop: asyncio.Event, grace_s: float) -> AsyncIterator[None]:
    """Set `stop` when the parent process has been dead for `grace_s` seconds.

    By pidfd, so it is told at once and no recycled pid can deceive it.
    """
    parent = os.getppid()
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(parent)
    except ProcessLookupError:
        stop.set()
        yield
        return
    timers: list[asyncio.TimerHandle] = []

    def died() -> None:
        loop.remove_reader(pidfd)
        timers.append(loop.call_later(grace_s, stop.set))

    loop.add_reader(pidfd, died)
    if os.getppid() != parent:  # it died before we looked
        died()
    try:
        yield
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        for timer in timers:
            timer.cancel()
