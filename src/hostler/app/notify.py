"""What a service manager is told (systemd's `Type=notify`): that a process is ready, and that its loop turns.

Nothing is told where nobody asked: `NOTIFY_SOCKET` names who listens.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.app.environment import environment

EVERY_S = 1.0


@asynccontextmanager
async def notifying() -> AsyncIterator[None]:
    """Tell that this process is ready, then every second that it lives, then that it stops."""
    place = environment("NOTIFY_SOCKET")
    if not place:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)

        def say(words: bytes) -> None:
            with contextlib.suppress(OSError):  # nobody listens, or not now
                sock.sendto(words, f"\0{place[1:]}" if place.startswith("@") else place)

        def live() -> None:
            nonlocal timer
            say(b"WATCHDOG=1")
            timer = loop.call_later(EVERY_S, live)

        say(b"READY=1")
        live()
        try:
            yield
        finally:
            say(b"STOPPING=1")
            if timer is not None:
                timer.cancel()
