"""A mirror that may follow one of several controllers finds the one that leads, and tells that one."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from hostler.app.config import HttpLimits
from hostler.core.change import Change
from hostler.core.errors import ControllerUnavailable
from hostler.core.fleet import BeatAnswer, Doubt
from hostler.core.snapshot import PROTOCOL, Endpoint
from hostler.registry.client import RegistryClient
from hostler.registry.mirror import SnapshotMirror
from hostler.wire.server import Exchange, HttpServer
from tests.integration.wire.running import socket_folder, until


class Controller:
    """One that leads tells its snapshot; one that stands by says so."""

    def __init__(self, incarnation: int) -> None:
        self.whole = Change(protocol=PROTOCOL, incarnation=incarnation, version=1)
        self.leads = False
        self.doubts = 0
        self.server = HttpServer(self._handle, limits=HttpLimits())
        self._open: list[Exchange] = []

    def stand_by(self) -> None:
        self.leads = False
        for exchange in self._open:
            exchange.abort()

    def _handle(self, exchange: Exchange) -> None:
        if not self.leads:
            exchange.send_error(ControllerUnavailable(retry_after_s=1))
        elif exchange.request.path == "/watch":
            self._open.append(exchange)
            exchange.start(200, (), None)
            exchange.write(msgspec.json.encode(self.whole) + b"\n")
        else:
            self.doubts += 1
            exchange.send(200, msgspec.json.encode(BeatAnswer(next_beat_s=0.0)))


def test_a_mirror_finds_who_leads_and_reports_follow_it() -> None:
    async def main(folder: Path) -> None:
        async with AsyncExitStack() as stack:
            controllers = [Controller(1), Controller(2)]
            ways = [Endpoint(socket=str(folder / f"{n}.sock")) for n in range(2)]
            for one, way in zip(controllers, ways, strict=True):
                await one.server.listen_unix(Path(way.socket))
                stack.push_async_callback(one.server.close, 0.0)
            mirror = SnapshotMirror(ways, time.monotonic)
            reporter = RegistryClient(mirror.endpoint, newest=lambda: mirror.endpoint)
            doubt = Doubt(instance_id="aa", epoch=1)
            await stack.enter_async_context(mirror.running())
            controllers[0].leads = True
            await until(lambda: mirror.snapshot.incarnation == 1)
            assert mirror.endpoint == ways[0]
            await reporter.doubt(doubt)
            controllers[1].leads = True
            controllers[0].stand_by()
            await until(lambda: mirror.snapshot.incarnation == 2)
            assert mirror.endpoint == ways[1]
            await reporter.doubt(doubt)
            assert [one.doubts for one in controllers] == [1, 1]

    async def in_folder() -> None:
        async with socket_folder() as folder:
            await main(folder)

    asyncio.run(in_folder())
