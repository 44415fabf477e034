"""Where a fake engine listens, and how it stops listening for a while."""

import asyncio
import contextlib
import socket
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

from hostler.testing.fake_http import Connection

BACKLOG = 1024


class Door:
    """One listening socket, and the connections that came in by it."""

    def __init__(self, make: Callable[[], Connection], path: str, host: str, port: int) -> None:
        """path: of a Unix socket; "" for host and port."""
        self._make = make
        self._path, self._host, self._port = path, host, port
        self._inside: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                Path(self._path).unlink()
            self._server = await loop.create_unix_server(self._enter, self._path, backlog=BACKLOG)
            return
        listener = socket.create_server((self._host, self._port), backlog=BACKLOG)
        self._port = listener.getsockname()[1]
        sys.stderr.write(f"listening on {self._host}:{self._port}\n")
        sys.stderr.flush()
        self._server = await loop.create_server(self._enter, sock=listener)

    def shut(self) -> None:
        """Listen no more; connections end when nothing is under way on them."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._inside):
            connection.leave()

    async def refuse(self, seconds: float) -> None:
        """Refuse everybody for so long."""
        self.shut()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                Path(self._path).unlink()
        await asyncio.sleep(seconds)
        await self.open()

    # Private

    def _enter(self) -> Connection:
        connection = self._make()
        self._inside.add(connection)
        return connection
