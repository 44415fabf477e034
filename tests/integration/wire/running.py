"""Servers on real sockets for these tests, ours and hand-written ones."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from hostler.app.config import HttpLimits
from hostler.core.snapshot import Endpoint
from hostler.wire.client import PlainSink, UpstreamLost
from hostler.wire.server import Exchange, HttpServer

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def listen(server: HttpServer) -> int:
    """Have it serve on a free port, which is returned. Whoever asks for it closes it as well."""
    sock = socket.create_server(("127.0.0.1", 0))
    await server.listen(sock)
    port: int = sock.getsockname()[1]
    return port


@asynccontextmanager
async def serving(
    handler: Callable[[Exchange], None], limits: HttpLimits | None = None
) -> AsyncIterator[tuple[HttpServer, Endpoint]]:
    server = HttpServer(handler, limits=limits or HttpLimits())
    port = await listen(server)
    try:
        yield server, Endpoint(host="127.0.0.1", port=port)
    finally:
        await server.close(0.0)


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Endpoint]:
    """A server that does what `script` says with each connection."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()


@asynccontextmanager
async def socket_folder() -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.005)


class Record(PlainSink):
    """A sink that writes down what it gets."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.error: UpstreamLost | None = None
        self.over = asyncio.Event()

    async def wait(self) -> "Record":
        async with asyncio.timeout(5):
            await self.over.wait()
        return self

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        self.events.append("head")
        self.status, self.headers = status, headers

    def on_data(self, data: bytes) -> None:
        self.events.append("data")
        self.body += data

    def on_end(self) -> None:
        self.events.append("end")
        self.over.set()

    def on_lost(self, error: UpstreamLost) -> None:
        self.events.append("lost")
        self.error = error
        self.over.set()
