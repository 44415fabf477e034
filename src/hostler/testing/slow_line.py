"""SlowLine: a TCP proxy that delays, stalls and resets. For kernels that have no `netem`."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

READ_BYTES = 64 * 1024


class SlowLine:
    """A line to one address. delay_s: added to each direction; may be changed at any time.

    is_stalled: nothing passes, nothing is closed. `reset` cuts all connections at once.
    """

    def __init__(self, host: str, port: int, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.is_stalled = False
        self.address = ("", 0)
        self.connections = 0  # so many, ever
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self, sock: socket.socket | None = None) -> AsyncIterator["SlowLine"]:
        """Pass on what comes to a bound socket; without one, to a free port of loopback."""
        server = await asyncio.start_server(
            self._accept, sock=sock or socket.create_server(("127.0.0.1", 0))
        )
        self.address = server.sockets[0].getsockname()[:2]
        try:
            yield self
        finally:
            server.close()
            self.reset()
            for task in tuple(self._tasks):
                task.cancel()

    def reset(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    # Private

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(back)
        with suppress(OSError):
            async with asyncio.TaskGroup() as ways:
                for source, sink in ((reader, back), (there, writer)):
                    task = ways.create_task(self._carry(source, sink), name="slow line")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        for one in (writer, back):
            self._writers.discard(one)
            one.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Copy one direction; each read goes out `delay_s` after it came."""
        loop, waiting = asyncio.get_running_loop(), deque[tuple[float, bytes]]()
        async with asyncio.TaskGroup() as group:
            news = asyncio.Event()

            async def read() -> None:
                while True:
                    try:
                        data = await source.read(READ_BYTES)
                    except OSError:
                        data = b""
                    waiting.append((loop.time() + self.delay_s, data))
                    news.set()
                    if not data:
                        return

            group.create_task(read(), name="slow line read")
            while True:
                while not waiting or self.is_stalled:
                    news.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), 0.05)
                due_s, data = waiting.popleft()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if not data:
                    sink.close()
                    return
                sink.write(data)
                with suppress(OSError):
                    await sink.drain()
