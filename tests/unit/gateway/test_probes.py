"""Who is probed: servers given by URL always, instances of ours when something speaks for it."""

import asyncio
import socket

import msgspec

from hostler.app.config import GatewayConfig
from hostler.core.change import Change
from hostler.core.lifecycle import State
from hostler.core.snapshot import Endpoint
from hostler.gateway.probes import LAST_SILENT_S, Prober
from hostler.routing.health import FALL
from hostler.routing.router import Router
from tests.unit.routing.fleet import instance, model


def test_one_of_ours_that_has_no_endpoint_yet_is_no_server_given_by_url() -> None:
    router = Router()
    prober = Prober(GatewayConfig(), router, lambda one, is_down: None, lambda one: None)
    server = instance("url", endpoint=Endpoint(host="127.0.0.1", port=1))
    starting = instance("ours", endpoint=Endpoint(), state=State.STARTING)
    ready = msgspec.structs.replace(
        starting, state=State.READY, endpoint=Endpoint(socket="/nowhere/ours.sock")
    )
    for change in (
        Change(version=1, models=(model("m"),), instances=(server, starting)),
        Change(since=1, version=2, instances=(ready,)),
    ):
        router.take(change)
        prober.take(change)
    assert [one.instance_id for one in prober._doubted()] == ["url"]
    router.note_probe("ours", False)
    router.health.failed("ours")
    assert {one.instance_id for one in prober._doubted()} == {"url", "ours"}
    gone = Change(since=2, version=3, gone=("url", "ours"))
    router.take(gone)
    prober.take(gone)
    assert prober._doubted() == []


def test_F21_the_last_server_behind_a_lossy_line_stays_while_requests_are_answered() -> None:
    """And goes out when it says nothing at all, or is refused."""

    async def main() -> None:
        now_s = 100.0
        silent = socket.create_server(("127.0.0.1", 0), backlog=100)  # nobody accepts
        port = silent.getsockname()[1]
        router = Router(clock=lambda: now_s)
        config = GatewayConfig(probe_timeout_s=0.05)
        prober = Prober(config, router, lambda one, is_down: None, lambda one: None)
        ids = ("one", "two")
        servers = [instance(name, endpoint=Endpoint(host="127.0.0.1", port=port)) for name in ids]
        router.take(Change(version=1, models=(model("m"),), instances=tuple(servers)))
        router.answered_s.update(dict.fromkeys(ids, now_s))

        async def probe() -> list[str]:
            for server in servers * FALL:
                await prober._probe(server, asyncio.Semaphore(1))
            return [name for name in ids if router.health.is_down(name)]

        assert await probe() == ["one"]
        now_s += LAST_SILENT_S
        assert await probe() == ["one", "two"]
        router.note_probe("two", True)
        router.note_probe("two", True)
        router.answered_s["two"] = now_s
        assert await probe() == ["one"]
        silent.close()
        assert await probe() == ["one", "two"]

    asyncio.run(main())


def test_F19_a_silent_server_that_the_controller_gave_up_first_is_not_the_last() -> None:
    """Else its requests are held until it answers again: it is the other one that is left."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:  # nobody accepts
            endpoint = Endpoint(host="127.0.0.1", port=silent.getsockname()[1])
            router = Router(clock=lambda: 100.0)
            down: list[bool] = []
            prober = Prober(
                GatewayConfig(probe_timeout_s=0.05),
                router,
                lambda one, is_down: down.append(is_down),
                lambda one: None,
            )
            cut = instance("cut", endpoint=endpoint, state=State.SUSPECT)
            router.take(Change(version=1, models=(model("m"),), instances=(cut, instance("well"))))
            router.answered_s["cut"] = 99.0
            for _ in range(FALL):
                await prober._probe(cut, asyncio.Semaphore(1))
            assert down == [False] * (FALL - 1) + [True]
            router.take(Change(since=1, version=2, gone=("well",)))
            router.health.forget("cut")
            await prober._probe(cut, asyncio.Semaphore(1))
            assert len(down) == FALL  # now nobody else is left: its requests may be answered yet

    asyncio.run(main())
