"""Turn: what one turn of the event loop reads is worked on at its end, together; then all that is written.

Each read and write is a visit to the kernel, which puts other code into the CPU's caches; what is worked
on in a row finds ours still there. And a write to a socket whose reader sleeps wakes it, which costs more
than the write: between two writes of a burst it has no time to fall asleep again.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from hostler.wire.direct import AnyWatch, watch_of

if TYPE_CHECKING:
    from hostler.wire.connection import ServerConnection
    from hostler.wire.upstream import Connection

log = logging.getLogger(__name__)

HELD_BYTES = 256 * 1024  # that were read and wait; more are worked on at once


class Turn:
    """The reads and writes of servers and pools of one loop. Without a loop each is done at once."""

    __slots__ = (
        "_after",
        "_answered",
        "_answers",
        "_asked",
        "_is_due",
        "_loop",
        "_read_bytes",
        "_requests",
        "_watch",
        "_writers",
        "_writes",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._is_due = False  # the end of this turn will come here
        # who, and beside it what: a pair for each would be made and thrown away thousands of times a second
        self._asked: list[ServerConnection] = []
        self._requests: list[bytes] = []
        self._answered: list[Connection] = []
        self._answers: list[bytes] = []
        self._watch: AnyWatch | None = None  # of streams that go directly
        self._after: list[Connection] = []
        self._read_bytes = 0
        self._writers: list[asyncio.Transport] = []
        self._writes: list[bytes] = []

    def join(self, loop: asyncio.AbstractEventLoop) -> None:
        """Its turns are those of this loop from now on."""
        self._loop = loop

    def asked(self, connection: "ServerConnection", data: bytes) -> None:
        """A client's connection has read this."""
        if self._loop is None:
            connection.take(data)
            return
        self._asked.append(connection)
        self._requests.append(data)
        self._note_read(len(data))

    def answered(self, connection: "Connection", data: bytes) -> None:
        """An engine's connection has read this."""
        if self._loop is None:
            connection.take(data)
            return
        self._answered.append(connection)
        self._answers.append(data)
        self._note_read(len(data))

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write this, after what was written before it."""
        if self._loop is None:
            transport.write(data)
            return
        self._writers.append(transport)
        self._writes.append(data)
        if not self._is_due:
            self._begin()

    def watch(self) -> AnyWatch:
        """The watch of this loop. Raises OSError: there are no more files."""
        if self._watch is None:
            assert self._loop is not None
            self._watch = watch_of(self._loop)
        return self._watch

    def after(self, connection: "Connection") -> None:
        """When all of this turn is written, its stream may go directly."""
        self._after.append(connection)

    def catch_up(self) -> None:
        """Work on all that was read until now: before it is judged who is idle, or gone."""
        while self._answers or self._requests:
            engines, self._answered = self._answered, []
            answers, self._answers = self._answers, []
            clients, self._asked = self._asked, []
            requests, self._requests = self._requests, []
            self._read_bytes = 0
            for at, engine in enumerate(engines):
                try:
                    engine.take(answers[at])
                except Exception:  # boundary: one connection
                    log.exception("http.connection_failed")
                    engine.transport.abort()
            for at, client in enumerate(clients):
                try:
                    client.take(requests[at])
                except Exception:  # boundary: one connection
                    log.exception("http.connection_failed")
                    client.transport.abort()

    def flush(self) -> None:
        """Write all of it now: before a connection is closed, and at the end of the turn."""
        writers, self._writers = self._writers, []
        writes, self._writes = self._writes, []
        for at, transport in enumerate(writers):
            if transport.is_closing():  # aborted meanwhile: nobody waits for it
                continue
            try:
                transport.write(writes[at])
            except Exception:  # boundary: one connection; those behind it have answers here, too
                log.exception("http.write_failed")
                transport.abort()

    # Private

    def _note_read(self, count: int) -> None:
        self._read_bytes += count
        if not self._is_due:
            self._begin()
        if self._read_bytes > HELD_BYTES:
            self.catch_up()

    def _begin(self) -> None:
        assert self._loop is not None
        self._is_due = True
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        try:
            self.catch_up()
        finally:
            self._is_due = False
            self.flush()
            if self._after and self._loop is not None:
                after, self._after = self._after, []
                self._loop.call_soon(_go, after)  # streams of the loop write at the end of its turn


# Private


def _go(streams: "list[Connection]") -> None:
    for stream in streams:
        stream.go_directly()
