"""What a process does when the one that supervised it is gone: go on for a while, then stop."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hostler.app.config import environment

STDIN_VARIABLE = "HOSTLER_KEPT_BY_STDIN"  # set by who holds the other end of our standard input

ENDS_WITH_IT = "ends"  # its value for what must end then, however needed it is


def when_stdin_ends(asked: Callable[[], None]) -> None:
    """Call `asked` when who started this process is gone, if it wished that: our standard input ends."""
    if not environment(STDIN_VARIABLE):
        return
    loop, number = asyncio.get_running_loop(), sys.stdin.fileno()

    def readable() -> None:
        if not os.read(number, 4096):
            loop.remove_reader(number)
            asked()

    loop.add_reader(number, readable)


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
