"""The admin API on a real socket, in a thread, for commands that run in the test's own process."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostler.app.config import HttpLimits
from hostler.wire.asgi import AsgiBridge
from hostler.wire.server import HttpServer
from tests.unit.admin.plane import Plane


@contextmanager
def served(plane: Plane, state_dir: Path) -> Iterator[str]:
    """Serve the plane; yield its URL. The state folder is as `hostler up` leaves it."""
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    started: threading.Event = threading.Event()
    control: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            server = HttpServer(AsgiBridge(plane.app, tasks), limits=HttpLimits())
            await server.listen(sock)
            control.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()
            await server.close(0.0)

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(10)
    state_dir.mkdir(exist_ok=True)
    (state_dir / "up.json").write_text(f'{{"url":"{url}","pid":1,"started_at_s":0}}')
    (state_dir / "admin.key").write_text(plane.admin.plain + "\n")
    try:
        yield url
    finally:
        loop, stop = control[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
