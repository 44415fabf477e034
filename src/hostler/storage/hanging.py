"""Hanging: ends connections whose server takes requests and answers nothing.

The server's own limits do not help when it stands still as a whole (a disk that hangs, a process that
was stopped), and its kernel acknowledges all the same, so that keep-alives find nothing. Then whoever
asked would wait for ever; here the socket is shut from another thread, and the driver sees its end.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import sqlalchemy as sa

HANG_S = 6.0  # for one use: more than the server's limits together
_LOOK_EVERY_S = 0.5


class Wire:
    """The socket of a line's connection, and since when somebody waits on it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._socket: socket.socket | None = None
        self._since_s: float | None = None
        self._lock = threading.Lock()
        sa.event.listen(engine, "connect", self._opened)
        sa.event.listen(engine, "close", self._closed)

    def begin(self) -> None:
        """Somebody uses it from now on."""
        self._since_s = time.monotonic()

    def end(self) -> None:
        self._since_s = None

    def cut_if_hanging(self) -> None:
        """Shut it when it has been used for too long."""
        since_s = self._since_s
        if since_s is None or time.monotonic() - since_s < HANG_S:
            return
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    # Private

    def _opened(self, connection: object, _: object) -> None:
        # a descriptor of our own: the driver's may be closed, and be another's, in the moment we look
        number = os.dup(connection.fileno())  # type: ignore[attr-defined]
        self.close()
        with self._lock:
            self._socket = socket.socket(fileno=number)

    def _closed(self, *_: object) -> None:
        self.close()


class HangWatch:
    """Looks at wires from a thread of its own, until `stop`."""

    def __init__(self, wires: Sequence[Wire]) -> None:
        self._wires = wires
        self._over = threading.Event()
        threading.Thread(target=self._look, name="store.hangs", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    # Private

    def _look(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            for wire in self._wires:
                wire.cut_if_hanging()
