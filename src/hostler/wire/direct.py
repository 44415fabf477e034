"""Direct: a stream's plain pieces go from the engine's socket to the client's, past the loop's streams.

The idea: of a stream's pieces all but the first and the last few say the same thing around a short text. What
is done for each of them is one read, one look and one write; the event loop's buffers, callbacks and objects
around that cost more than it. So once some pieces were plain, the socket is watched here: each read is
looked at, and written at once. Whatever is not plain, or cannot be written, ends this, and all bytes that
were not sent go the usual way. Plain sockets only: TLS has keys that are the loop's.

One call of the loop serves all streams that have news. `_direct.c` is the same in C, where the data plane is
compiled.
"""

import asyncio
import errno
import logging
import os
import select
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from hostler.wire.door import is_scarce
from hostler.wire.scan import holds, leading_hex

if TYPE_CHECKING:
    from hostler.wire.upstream import Connection

log = logging.getLogger(__name__)

READ_BYTES = 65536
SLOW_BYTES = 8192  # that wait for a client that was once too slow, before its engine is held up
PLAIN_READS = 2  # that came one after the other, before the rest goes this way


class Way(msgspec.Struct, frozen=True, gc=False):
    """Where a stream's pieces may go directly, and which of them.

    client: its transport, with nothing waiting to be written. write: the usual way there.
    head, tail: what a plain chunk has before its text (from its size's line on) and after it.
    marks: a chunk that has none of them is plain as well.
    """

    client: asyncio.Transport
    write: Callable[[bytes], object]
    head: bytes
    tail: bytes
    marks: tuple[bytes, ...]


class AnyPump(Protocol):
    """See Pump."""

    chunks: int
    heard: bool

    def pump(self) -> None: ...


class AnyWatch(Protocol):
    """See Watch."""

    def fileno(self) -> int: ...

    def add(self, pump: Any, /) -> None: ...

    def remove(self, pump: Any, /) -> None: ...

    def run(self) -> None: ...


class Pump:
    """Sends on whole plain chunks. Calls `give_back(unsent, rest)` with anything else, and at the end.

    unsent: framed bytes that the client is owed first. rest: what is still to be looked at.
    chunks: sent on. heard: something came.
    """

    __slots__ = (
        "_give_back",
        "_head",
        "_marks",
        "_pending",
        "_tail",
        "_to",
        "chunks",
        "from_",
        "heard",
    )

    def __init__(
        self,
        from_: int,
        to: int,
        head: bytes,
        tail: bytes,
        marks: tuple[bytes, ...],
        give_back: Callable[[bytes, bytes], None],
    ) -> None:
        self.from_, self._to = from_, to
        self._head, self._tail, self._marks = head, tail, marks
        self._give_back = give_back
        self._pending = b""
        self.chunks = 0
        self.heard = False

    def pump(self) -> None:
        """Take one read and send it on."""
        pending, self._pending = self._pending, b""
        try:
            data = os.read(self.from_, READ_BYTES - len(pending))
        except (BlockingIOError, InterruptedError):
            self._pending = pending
            return
        except OSError:
            data = b""
        if not data:
            self._give_back(b"", pending)
            return
        self.heard = True
        data = pending + data
        count, end = self._plain_until(data)
        if end < 0 or (not end and len(data) == READ_BYTES):
            self._give_back(b"", data)
            return
        try:
            sent = os.write(self._to, data[:end]) if end else 0
        except OSError:
            sent = 0  # whatever it is: the loop's own writing finds out
        self.chunks += count
        if sent < end:
            self._give_back(data[sent:end], data[end:])
        else:
            self._pending = data[end:]

    # Private

    def _plain_until(self, data: bytes) -> tuple[int, int]:
        """How many whole plain chunks come first, and where they end; -1: one is not plain."""
        at, count, size = 0, 0, len(data)
        while at < size:
            number, start = leading_hex(data, at)
            if data[at] == _ZERO or (start == at and start < size):
                return 0, -1
            if start == size:
                break
            end = start + number + 4
            if data[start] != _CR or number < 2 or end - at > READ_BYTES:
                return 0, -1
            if start + 1 < size and data[start + 1] != _LF:
                return 0, -1
            if end > size:
                break
            if data[end - 4 : end] != b"\n\n\r\n" or not self._is_plain(data[start + 2 : end]):
                return 0, -1
            at, count = end, count + 1
        return count, at

    def _is_plain(self, chunk: bytes) -> bool:
        head, tail = len(self._head), len(chunk) - len(self._tail)
        if self._tail and head < tail <= head + _TEXT_BYTES:
            text = chunk[head:tail]
            is_short = min(text) >= _SPACE and b'"' not in text
            if is_short and chunk.startswith(self._head) and chunk.endswith(self._tail):
                return True
        return not any(holds(chunk, mark) for mark in self._marks)


class Watch:
    """The pumps of one loop. A pump that was added is kept until it is removed.

    An epoll of its own, which the loop watches: libuv stops to watch a file for good when it has an error,
    and what was received before the error would stay there.
    """

    __slots__ = ("_epoll", "_pumps")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pumps: dict[int, Pump] = {}

    def fileno(self) -> int:
        """What the loop watches: readable when a pump has news."""
        return self._epoll.fileno()

    def add(self, pump: Pump, /) -> None:
        self._epoll.register(pump.from_, select.EPOLLIN)
        self._pumps[pump.from_] = pump

    def remove(self, pump: Pump, /) -> None:
        del self._pumps[pump.from_]
        self._epoll.unregister(pump.from_)

    def run(self) -> None:
        """Pump all that have news."""
        for file, _ in self._epoll.poll(0, _EVENTS):
            pump = self._pumps.get(file)
            if pump is None:
                continue  # one before it ended it
            try:
                pump.pump()
            except Exception:  # boundary: one stream
                log.exception("http.direct_failed")


class Direct:
    """One stream that goes directly. `end` it before anything else is done with either connection."""

    __slots__ = ("_client", "_connection", "_fds", "_pump", "_watch", "_write")

    def __init__(self, watch: AnyWatch, connection: "Connection", way: Way) -> None:
        """Raises OSError: there are no more files."""
        self._watch = watch
        self._connection = connection
        self._client, self._write = way.client, way.write
        engine = connection.transport
        # copies: their numbers stay ours until the end, whatever becomes of the connections
        self._pump: AnyPump | None = None
        self._fds = [os.dup(engine.get_extra_info("socket").fileno())]
        try:
            self._fds.append(os.dup(way.client.get_extra_info("socket").fileno()))
            if is_scarce(max(self._fds)):
                raise OSError(errno.EMFILE, "no files to spare")
            pump = make_pump(*self._fds, way.head, way.tail, way.marks, self._give_back)
            watch.add(pump)
        except BaseException:  # boundary: files must not leak; the error goes on
            self._close()
            raise
        engine.pause_reading()
        self._pump = pump

    def passed(self) -> int:
        """Chunks that were sent on since the last look; -1: nothing came."""
        pump = self._pump
        if pump is None or not pump.heard:
            return -1
        chunks, pump.chunks, pump.heard = pump.chunks, 0, False
        return chunks

    def end(self) -> None:
        """Let the loop's streams have it again. Once."""
        pump, self._pump = self._pump, None  # which knows us
        if pump is not None:
            self._watch.remove(pump)
            self._close()
        engine = self._connection.transport
        if not engine.is_closing():
            engine.resume_reading()

    # Private

    def _give_back(self, unsent: bytes, rest: bytes) -> None:
        connection = self._connection
        connection.end_direct()
        if unsent:  # the client is slow: no more is read until it has nearly all of this (B20)
            self._client.set_write_buffer_limits(high=SLOW_BYTES)
            self._write(unsent)
        if rest:
            connection.data_received(rest)

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def can_go_past(transport: asyncio.BaseTransport) -> bool:
    """Are the bytes in its socket the ones it is given? Not with TLS, whose keys are the loop's."""
    return transport.get_extra_info("sslcontext") is None


def watch_of(loop: asyncio.AbstractEventLoop) -> AnyWatch:
    """A new watch of this loop; for as long as the loop lives.

    Raises:
        OSError: there are no more files.
    """
    watch: AnyWatch = make_watch()
    loop.add_reader(watch.fileno(), watch.run)
    return watch


_direct: Any = None
with suppress(ImportError):
    _direct = import_module("hostler.wire._direct")
make_pump: Callable[..., AnyPump] = Pump if _direct is None else _direct.Pump
make_watch: Callable[[], AnyWatch] = Watch if _direct is None else _direct.Watch

# Private

_EVENTS = 64  # of one call of the loop; the others come in its next turn
_TEXT_BYTES = 64  # of a text that is looked at byte by byte
_SPACE = 0x20
_ZERO = 0x30
_CR = 0x0D
_LF = 0x0A
