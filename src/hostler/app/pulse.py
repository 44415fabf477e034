"""Pulse: a process tells its supervisor every second that its event loop turns.

One that is stopped, deadlocked or frozen looks alive to a pidfd; its silence does not. The idea is
sd_notify's watchdog. A process that drains still tells, so it is not taken for one that hangs.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

EVERY_S = 1.0
_LOOK_S = 0.02


@asynccontextmanager
async def telling(path: Path, serves: Callable[[], bool]) -> AsyncIterator[None]:
    """Tell of this process while the block lasts, once it serves. Whether anybody listens makes no
    difference.
    """
    said = b"%d" % os.getpid()
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)

        is_serving = False

        def tell() -> None:
            nonlocal timer, is_serving
            is_serving = is_serving or serves()
            if is_serving:
                with contextlib.suppress(OSError):  # nobody listens, or not now
                    sock.sendto(said, str(path))
            timer = loop.call_later(EVERY_S if is_serving else _LOOK_S, tell)

        timer = loop.call_later(_LOOK_S, tell)
        try:
            yield
        finally:
            timer.cancel()


@asynccontextmanager
async def hearing(path: Path, note: Callable[[int], None]) -> AsyncIterator[None]:
    """Call `note` with the pid of each process that tells of itself there."""
    path.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(str(path))

        def hear() -> None:
            try:
                while said := sock.recv(32):
                    if said.isdigit():
                        note(int(said))
            except OSError:
                return  # nothing more for now

        loop.add_reader(sock, hear)
        try:
            yield
        finally:
            loop.remove_reader(sock)
            path.unlink(missing_ok=True)


def takes_connections(path: Path) -> bool:
    """Whether a process serves on this Unix socket now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        return sock.connect_ex(str(path)) == 0
