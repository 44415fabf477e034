"""Servers given by URL: when the controller holds one suspect."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.config import Config, GatewayConfig
from hostler.core.lifecycle import State
from hostler.core.worker import WorkerStartupRequest
from hostler.manager.local import LocalWorkerManager
from hostler.manager.servers import FALL, FALL_LAST

PROBES = GatewayConfig(probe_timeout_s=0.2, probe_interval_s=60.0)  # by hand, here
LIST = msgspec.json.encode({"data": [{"id": "given"}]})


class Server:
    """Lists one model, or says nothing for longer than anybody waits."""

    def __init__(self) -> None:
        self.is_silent = False
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if server.is_silent:
                    server._over.wait(5.0)
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("content-length", str(len(LIST)))
                self.end_headers()
                self.wfile.write(LIST)

            def log_message(self, *arguments: Any) -> None:
                """Nothing is logged."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        serving = threading.Thread(target=self._http.serve_forever)
        serving.start()
        try:
            yield self
        finally:
            self.stop()
            serving.join()

    def stop(self) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()


def states(manager: LocalWorkerManager) -> list[State]:
    return [one.state for one in manager.registry.snapshot.instances if one.model_name == "given"]


def run(body: Callable[[LocalWorkerManager], Awaitable[None]], state: Path) -> None:
    async def main() -> None:
        config = Config(state_dir=str(state), gateway=PROBES)
        async with LocalWorkerManager(config, models=()) as manager:
            await body(manager)

    asyncio.run(main())


async def until_ready(manager: LocalWorkerManager, count: int) -> None:
    for _ in range(100):
        if await look(manager, 1) == [State.READY] * count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(states(manager))


async def look(manager: LocalWorkerManager, times: int) -> list[State]:
    for _ in range(times):
        await manager.servers.look()
    return states(manager)


def test_F21_the_last_server_that_is_left_is_held_suspect_late_when_it_is_only_silent(
    tmp_path: Path,
) -> None:
    async def body(manager: LocalWorkerManager) -> None:
        with Server().running() as one, Server().running() as two:
            urls = (one.url, two.url)
            await manager.model_startup(
                WorkerStartupRequest(model="given", engine="openai", urls=urls), wait=False
            )
            await until_ready(manager, 2)
            one.is_silent = two.is_silent = True
            assert sorted(await look(manager, FALL)) == [State.READY, State.SUSPECT]
            assert sorted(await look(manager, FALL_LAST - FALL - 1)) == [State.READY, State.SUSPECT]
            assert await look(manager, 1) == [State.SUSPECT, State.SUSPECT]
            one.is_silent = two.is_silent = False
            assert await look(manager, 1) == [State.READY, State.READY]

    run(body, tmp_path)


def test_a_last_server_that_takes_no_connections_is_suspect_at_once(tmp_path: Path) -> None:
    async def body(manager: LocalWorkerManager) -> None:
        server = Server()
        with server.running():
            await manager.model_startup(
                WorkerStartupRequest(model="given", engine="openai", urls=(server.url,)),
                wait=False,
            )
            await until_ready(manager, 1)
        assert await look(manager, FALL) == [State.SUSPECT]

    run(body, tmp_path)
