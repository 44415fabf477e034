"""Outlet: a stream that never makes its writer wait. What its reader has no room for is dropped, and counted.

A pipe or a terminal whose reader hangs stops whoever writes to it, and an event loop with him (F86). Files
are written as ever.
"""

import asyncio
import atexit
import io
import os
import select
import stat
import threading
import time
from typing import TextIO, cast

HELD_BYTES = 256 * 1024  # for a reader that is slow
_AT_ONCE = 4096  # PIPE_BUF: a pipe that is writable takes so much without a wait
_AGAIN_S = 0.01
_LAST_WORDS_S = 0.5  # at the end of the process


class Outlet(io.TextIOBase):
    """Stands for a text stream on a pipe, socket or terminal. From any thread."""

    def __init__(self, stream: TextIO) -> None:
        self.dropped = 0  # lines, since its start
        self._stream = stream
        self._fd = stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._held = bytearray()
        self._lock = threading.Lock()
        self._is_coming_back = False

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "replace")
        with self._lock:
            if len(self._held) + len(data) > HELD_BYTES:
                self.dropped += max(1, data.count(b"\n"))
            else:
                self._held += data
        self.drain()
        return len(text)

    def drain(self) -> bool:
        """Write what there is room for now, come back for the rest; return whether all is written."""
        with self._lock:
            while self._held and (taken := self._put(bytes(self._held[:_AT_ONCE]))):
                del self._held[:taken]
            is_all = not self._held
        if not is_all and not self._is_coming_back:
            try:
                asyncio.get_running_loop().call_later(_AGAIN_S, self._come_back)
                self._is_coming_back = True
            except RuntimeError:
                pass  # no loop in this thread: the next line takes these along
        return is_all

    def last_words(self, within_s: float = _LAST_WORDS_S) -> None:
        """Give the reader a moment for what is held: this process ends."""
        end_s = time.monotonic() + within_s
        while not self.drain() and time.monotonic() < end_s:
            time.sleep(_AGAIN_S)

    def flush(self) -> None:
        """Nothing is held that there is room for."""

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    # Private

    def _come_back(self) -> None:
        self._is_coming_back = False
        self.drain()

    def _put(self, piece: bytes) -> int:
        """Return how much the reader has room for, without a wait."""
        found = self._poll.poll(0)
        if not found or not found[0][1] & select.POLLOUT:
            return 0
        try:
            return os.write(self._fd, piece)
        except OSError:  # the reader is gone: nobody wants it
            return len(piece)


def never_waiting(stream: TextIO) -> TextIO:
    """Return the stream, or an Outlet for it when a reader may keep its writers waiting."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):  # closed, or no file at all
        return stream
    if isinstance(stream, Outlet) or stat.S_ISREG(mode):
        return stream
    stream.flush()
    outlet = Outlet(stream)
    atexit.register(outlet.last_words)
    return cast(TextIO, outlet)


def dropped_lines(stream: object) -> int:
    """How many lines a stream has dropped."""
    return stream.dropped if isinstance(stream, Outlet) else 0


def has_caught_up(stream: object) -> bool:
    """Whether the reader of a stream has taken everything; of a file it always has."""
    return stream.drain() if isinstance(stream, Outlet) else True
