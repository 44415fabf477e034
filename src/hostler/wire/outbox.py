"""Outbox: what is written in one turn of the event loop goes out at its end, together.

A write to a socket whose reader sleeps wakes it, which costs more than the write. Between two writes of
a burst it has no time to fall asleep again.
"""

import asyncio


class Outbox:
    """The writes of one server or pool. Without a loop each is done at once."""

    __slots__ = ("_held", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._held: list[tuple[asyncio.Transport, bytes]] = []

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write this, after what was written before it."""
        held, loop = self._held, self._loop
        if loop is None:
            transport.write(data)
            return
        if not held:
            loop.call_soon(self.flush)
        held.append((transport, data))

    def flush(self) -> None:
        """Write all of it now: before a connection is closed, and at the end of the turn."""
        held, self._held = self._held, []
        for transport, data in held:
            if not transport.is_closing():  # aborted meanwhile: nobody waits for it
                transport.write(data)
