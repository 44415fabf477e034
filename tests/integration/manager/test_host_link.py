"""A host whose line was cut: what it does once it is good again, and what it ends then."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hostler.app.config import Config, HostConfig
from hostler.app.paths import StatePaths
from hostler.core.hosts import HostBeat, HostBeatAnswer, HostOrders
from hostler.core.snapshot import Endpoint
from hostler.manager import host_link
from hostler.manager.controllers import Controllers
from hostler.manager.host import Host
from hostler.manager.host_link import Link
from hostler.manager.membership import Membership
from hostler.storage.sql import SqlStore
from hostler.testing.host_run import QUICK, HostRun
from hostler.testing.sim_controller import HOST_ID, SimController, echo_order
from hostler.wire.client import Pool
from hostler.wire.server import Exchange
from tests.integration.wire.running import until

NEVER_S = 600.0


class Pace:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@asynccontextmanager
async def host_before(socket: Path, clock: Pace) -> AsyncIterator[Host]:
    """A host in this process that waits for ever for an answer."""
    config = Config(host=HostConfig(answer_timeout_s=NEVER_S, silence_s=NEVER_S))
    paths = StatePaths(socket.parent / "h")
    paths.create()
    store = SqlStore(paths.database)
    controllers = ways_to(socket)
    membership = Membership(host_id=HOST_ID, name="b", controllers=(f"unix:{socket}",))
    host = Host(paths, config, store, membership, controllers, clock=clock)
    try:
        async with host.running():
            yield host
    finally:
        store.close()


def ways_to(socket: Path) -> Controllers:
    return Controllers(
        [Endpoint(socket=str(socket))], lambda one: Pool(one, connect_timeout_s=5, idle_s=30)
    )


async def answered(sim: SimController) -> None:
    await until(lambda: bool(sim.beats) and sim.streams > 0, 20)


class Teller:
    """Says that it lives, and always wants to say more at once."""

    def __init__(self) -> None:
        self.forgot = 0

    def beat(self) -> HostBeat:
        return HostBeat(host_id=HOST_ID, run_id="r1", seq=1)

    def heard(self, beat: HostBeat, answer: HostBeatAnswer) -> bool:
        return True

    def forget(self) -> None:
        self.forgot += 1


@asynccontextmanager
async def nothing_said(folder: Path) -> AsyncIterator[tuple[SimController, Host]]:
    """A host that has beaten and is to beat in a minute; whatever happens here, it does not before."""
    sim = SimController(folder / "c.sock")
    sim.next_beat_s = 60.0
    async with sim.running(), host_before(sim.socket, Pace()) as host:
        await answered(sim)
        await asyncio.sleep(0.3)
        before = len(sim.beats)
        yield sim, host
        await asyncio.sleep(0.3)
        assert len(sim.beats) == before


def link_to(socket: Path, voice: Teller) -> Link:
    async def take(orders: HostOrders) -> None: ...

    return Link(
        ways_to(socket),
        voice,
        HostConfig(),
        known=(0, 0),
        take=take,
        dismissed=lambda why: None,
        clock=time.monotonic,
    )


def test_F37_one_of_many_hosts_waits_for_its_turn_whatever_it_has_to_say_again(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        sim = SimController(tmp_path / "c.sock")
        link = link_to(sim.socket, Teller())
        async with sim.running():
            sim.next_beat_s, sim.spread_s = 5.0, 2.0
            assert await link.beat() == 0.0, "a few may say it at once"
            sim.spread_s = 20.0
            assert await link.beat() == 5.0

    asyncio.run(main())


def test_F37_a_list_that_changes_nothing_here_is_no_reason_to_beat(tmp_path: Path) -> None:
    async def main() -> None:
        async with nothing_said(tmp_path) as (sim, host):
            sim.order()
            await until(lambda: host.link.known == (1, sim.version), 20)

    asyncio.run(main())


def test_F37_a_host_that_is_heard_and_asked_nevertheless_keeps_its_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with nothing_said(tmp_path) as (_, host):
            assert host.link.asked().host_id == HOST_ID

    asyncio.run(main())


def test_F37_a_host_whose_orders_ended_says_everything_with_its_next_beat(tmp_path: Path) -> None:
    async def main() -> None:
        sim, voice = SimController(tmp_path / "c.sock"), Teller()
        sim.next_beat_s = 60.0
        async with link_to(sim.socket, voice).running():
            async with sim.running():
                await answered(sim)
                await asyncio.sleep(0.3)
                before = voice.forgot
            await until(lambda: voice.forgot > before, 20)

    asyncio.run(main())


class Ending(SimController):
    """Ends its streams of orders when a test says so; a beat that came when it is deaf is never answered."""

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self.ends = asyncio.Event()
        self.is_deaf = False
        self.unanswered = 0

    def handle(self, exchange: Exchange) -> None:
        if exchange.request.path == "/host/beat" and self.is_deaf:
            self.unanswered += 1
        else:
            super().handle(exchange)

    async def _stream(self, exchange: Exchange) -> None:
        self.streams += 1
        exchange.start(200, (), None)
        exchange.write(b"\n")
        await self.ends.wait()
        exchange.end()


def test_F37_a_beat_under_way_when_the_orders_end_is_made_anew_when_the_host_comes_back(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        sim = Ending(tmp_path / "c.sock")
        sim.next_beat_s, sim.spread_s = 0.1, 0.5
        async with sim.running(), link_to(sim.socket, Teller()).running():
            await answered(sim)
            sim.is_deaf = True
            await until(lambda: sim.unanswered == 1, 20)
            sim.ends.set()
            await until(lambda: sim.unanswered > 1, 4)

    asyncio.run(main())


def test_F42_a_host_that_waits_for_its_next_try_is_woken_by_who_comes_for_its_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_link, "RETRY_FIRST_S", NEVER_S)

    async def main() -> None:
        sim = SimController(tmp_path / "c.sock")
        async with host_before(sim.socket, Pace()) as host:
            await until(lambda: len(host.link.silent) == 2, 20)
            async with sim.running():
                assert host.link.asked().host_id == HOST_ID
                await answered(sim)

    asyncio.run(main())


def test_F42_what_was_sent_into_a_cut_line_is_not_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        sim, clock, waiting = SimController(tmp_path / "c.sock"), Pace(), set()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            waiting.add((await reader.readline()).split()[1])
            await reader.read()
            writer.close()

        cut = await asyncio.start_unix_server(hold, sim.socket)
        async with host_before(sim.socket, clock) as host:
            await until(lambda: len(waiting) == 2, 20)
            host.link.asked()
            await asyncio.sleep(0)
            assert not sim.beats, "a try that has just begun is let go on"
            cut.close()
            sim.socket.unlink()
            clock.ahead_s += 5.0
            async with sim.running():
                host.link.asked()
                await answered(sim)

    asyncio.run(main())


def test_F42_a_host_that_leaves_does_not_wait_for_what_was_given_up() -> None:
    """It drains for a minute, since its engine does not end; then its controller strikes it out."""
    config = QUICK.replace("drain_timeout_s = 3.0", "drain_timeout_s = 90.0")
    stubborn = {"script": '{"sigterm": "ignore"}'}

    async def main() -> None:
        with HostRun(config=config) as host:
            sim = SimController(host.root / "c.sock")
            host.join([sim.url])
            host.start()
            async with sim.running():
                sim.order(echo_order("aaaa01", params=stubborn))
                await sim.until(lambda: sim.state("aaaa01") == "ready", "it serves")
                host.send(15)
                await sim.until(lambda: sim.state("aaaa01") == "draining", "it drains")
                sim.order()
                assert await asyncio.to_thread(host.ended) == 0
                assert host.left_behind() == []

    asyncio.run(main())
