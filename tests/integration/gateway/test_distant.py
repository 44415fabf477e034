"""Engines on other hosts: relays that die, hang, are others, and lines between that are cut."""

import asyncio
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from hostler.app.config import HttpLimits
from hostler.core.model import PrefixReach
from hostler.engines.lending import LEND_PATH, READ_PATH
from hostler.testing import fake_text, netns
from hostler.testing.netns import Network
from hostler.wire.identity import Identity, Peer
from hostler.wire.server import HttpServer
from tests.chaos.figures import IS_LONG
from tests.integration.gateway.distant import HostMachine, hosts
from tests.integration.gateway.rig import Rig, error_of, text_of, until
from tests.integration.gateway.test_flights import prompt
from tests.integration.gateway.test_loans import Agent

WHY_NO_NET = netns.missing()


@asynccontextmanager
async def two_hosts(
    *, net: Network | None = None, **script: Any
) -> AsyncIterator[tuple[Rig, list[HostMachine]]]:
    """A gateway and two hosts with an engine of model `m` each."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        async with hosts(Path(name), net=net) as (ours, machines):
            for machine in machines:
                await machine.engine(ours, **script)
            ours.publish(concurrency=16)
            yield ours, machines


class Load:
    """Clients that ask one after the other, until told to stop. What they saw."""

    def __init__(self, ours: Rig) -> None:
        self._ours = ours
        self.statuses: Counter[int] = Counter()
        self.wrong = 0
        self.slowest_s = 0.0
        self.is_over = False

    async def client(self, number: int) -> None:
        turn = 0
        while not self.is_over:
            turn += 1
            began_s = time.monotonic()
            answer = await self._ours.chat(f"{number} {turn} {secrets.token_hex(4)}")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            self.statuses[answer.status] += 1
            if answer.status == 200 and not text_of(answer).startswith(f"m{fake_text.BAR}"):
                self.wrong += 1

    async def run(self, during: Callable[[], Awaitable[None]], clients: int = 8) -> "Load":
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self.client(number))
            try:
                await during()
            finally:
                self.is_over = True
        return self


def test_what_a_gateway_asks_an_instance_it_asks_through_its_hosts_relay() -> None:
    async def main() -> None:
        async with two_hosts() as (ours, _):
            answer = await ours.chat("one")
            assert answer.status == 200
            assert answer.header(
                b"x-hostler-instance",
            ) in {i.encode() for i in ours.engines}
            streamed = await ours.chat("two", stream=True)
            assert streamed.body.endswith(b"data: [DONE]\n\n")
            counted = await ours.post("/tokenize", {"model": "m", "content": "three words here"})
            assert counted.status == 200
            assert (await ours.chat("[[status=400]] four")).status == 400

    uvloop.run(main())


def test_a_loan_is_ordered_from_the_agent_behind_the_relay() -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            async with hosts(Path(name), ["hosta"]) as (ours, (machine,)):
                await machine.engine(ours, tokens=4, read_ms=2)
                ours.publish(concurrency=4, prefix_reach=PrefixReach.LENT)
                (instance_id,) = ours.ways
                agent = Agent()
                server = HttpServer(agent.handle, limits=HttpLimits(), name="agent")
                await server.listen_unix(machine.paths.agent_socket(instance_id))
                agent.go.set()
                texts = [prompt("p", f"question {n}") for n in range(3)]
                answers = await asyncio.gather(*(ours.chat(text, stream=True) for text in texts))
                assert {answer.status for answer in answers} == {200}
                assert [path for path, _ in agent.orders] == [READ_PATH, LEND_PATH]
                await server.close(0.0)

    uvloop.run(main())


def test_F01_a_relay_that_is_killed_costs_nobody_a_request() -> None:
    async def main() -> None:
        async with two_hosts() as (ours, (first, _)):

            async def fault() -> None:
                await asyncio.sleep(0.5)
                first.kill()
                await asyncio.sleep(1.0)

            load = await Load(ours).run(fault)
            assert set(load.statuses) == {200}
            assert load.wrong == 0

    uvloop.run(main())


def test_F03_a_relay_that_hangs_costs_nobody_a_request() -> None:
    async def main() -> None:
        async with two_hosts() as (ours, (first, _)):

            async def fault() -> None:
                await asyncio.sleep(0.5)
                first.signal(signal.SIGSTOP)
                await asyncio.sleep(4.0)
                first.signal(signal.SIGCONT)

            load = await Load(ours).run(fault)
            assert set(load.statuses) == {200}
            assert load.slowest_s < 10.0  # 3 s, and what a busy machine adds
            await until(lambda: len(ours.gateway.router.usable("m")) == 2, 5)

    uvloop.run(main())


def test_F07_a_deadly_request_takes_two_engines_of_hosts_at_most() -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            async with hosts(Path(name)) as (ours, machines):
                for machine in machines:
                    for _ in range(2):
                        await machine.engine(ours)
                ours.publish()
                for number in range(8):  # so that connections are used ones
                    assert (await ours.chat(f"{number}")).status == 200
                answer = await ours.chat("[[crash_at=1]] die")
                assert answer.status == 502
                assert error_of(answer)["code"] == "worker_lost"
                await asyncio.sleep(0.1)
                dead = [one for one in ours.engines.values() if one.process.poll() is not None]
                assert len(dead) == 2
                assert (await ours.chat("well")).status == 200

    uvloop.run(main())


@pytest.mark.parametrize("kind", ["other host", "other authority"] if IS_LONG else ["other host"])
def test_F27_another_host_at_the_address_is_never_asked(kind: str) -> None:
    """The port of a relay that died is taken by another one, with an engine of another model."""

    async def main() -> None:
        async with two_hosts() as (ours, (_, second)):
            second.kill()
            thief = HostMachine(second.paths, second.host_id, second.address, second.port)
            if kind == "other host":
                thief.show(Identity(Peer.HOST, "thief"))
            else:
                thief.show(Identity(Peer.HOST, second.host_id), trustme.CA())
            instance_id = next(i for i, way in ours.ways.items() if way.port == second.port)
            ours.engines[instance_id].kill()  # and even the instance's name is taken
            await ours.start_engine(instance_id, "another-model", folder=second.paths.run_dir)
            ours.publish(concurrency=16)
            thief.launch()
            try:
                load = Load(ours)

                async def enough() -> None:
                    await until(lambda: load.statuses.total() >= 2000, 60)

                await load.run(enough, clients=16)
            finally:
                thief.kill()
            assert load.wrong == 0
            assert set(load.statuses) == {200}
            assert (await ours.engines[instance_id].ledger())["executions"] == []
            text = ours.gateway.metrics.text().decode()
            assert 'hostler_attempt_failures_total{kind="refused",model="m"}' in text

    uvloop.run(main())


@pytest.mark.skipif(bool(WHY_NO_NET), reason=WHY_NO_NET)
@pytest.mark.parametrize("way", ["back", "there", "both"] if IS_LONG else ["back"])
def test_F19_F20_a_host_behind_a_cut_line_costs_nobody_a_request(way: str) -> None:
    async def main(net: Network) -> None:
        async with two_hosts(net=net) as (ours, _):

            async def fault() -> None:
                await asyncio.sleep(0.3)
                if way == "both":
                    net.cut("hosta", "here")
                elif way == "there":
                    net.cut("here", "hosta", one_way=True)
                else:
                    net.cut("hosta", "here", one_way=True)
                await asyncio.sleep(3.3)
                net.heal()

            load = await Load(ours).run(fault)
            assert set(load.statuses) == {200}
            assert load.slowest_s < 10.0  # 4.5 s, and what a busy machine adds
            await until(lambda: len(ours.gateway.router.usable("m")) == 2, 10)

    with Network("hosta", "hostb", "here") as net, net.inside("here"):
        uvloop.run(main(net))


@pytest.mark.slow
@pytest.mark.skipif(bool(WHY_NO_NET), reason=WHY_NO_NET)
def test_F21_a_lossy_line_costs_nobody_a_request() -> None:
    async def main(net: Network) -> None:
        async with two_hosts(net=net) as (ours, _):

            async def fault() -> None:
                net.lose(20, "hosta", "here")
                net.lose(10, "hostb", "here")
                await asyncio.sleep(30.0 if IS_LONG else 3.0)
                net.heal()

            load = await Load(ours).run(fault)
            assert set(load.statuses) == {200}, load.statuses
            assert load.statuses.total() > 10

    with Network("hosta", "hostb", "here") as net, net.inside("here"):
        uvloop.run(main(net))
