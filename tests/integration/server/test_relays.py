"""The relays of a server and a host: logs are read there; who was removed is refused at once."""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from hostler.core.hosts import HostFacts, Role
from hostler.core.snapshot import Endpoint
from hostler.registry.joining import join
from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.wire.client import Pool, UpstreamLost, fetch, stream
from hostler.wire.identity import ClientContexts
from hostler.wire.refused import REFUSED_FILE

CONFIG = """
[life]
hung_after_s = 60.0
"""
AT_ONCE_S = 2.0
LONG = {"model": "far", "stream": True, "prompt": "[[delay_ms=20]] [[tokens=5000]]"}


class Place:
    """One relay, and an instance behind it."""

    def __init__(self, port: int, host_id: str, instance_id: str) -> None:
        self.instance_id = instance_id
        self.relay = Endpoint(host="127.0.0.1", port=port, host_id=host_id)
        self.engine = Endpoint(
            host="127.0.0.1", port=port, host_id=host_id, prefix=f"/i/{instance_id}"
        )


class Fleet:
    """A server with a model of its own, and one host with another."""

    def __init__(self, cluster: Cluster, host: HostRun, folder: Path) -> None:
        self.cluster = cluster
        self.host = host
        self.folder = folder
        self.record = json.loads((cluster.state_dir / "up.json").read_bytes())

    def token(self, role: str) -> str:
        told: Any = self.cluster.json("POST", "/api/v1/tokens", {"role": role})
        return str(told["token"])

    def join_host(self) -> None:
        words = ("host", "join", f"--controller={self.record['control_url']}", "--name=b")
        token = f"--token={self.token('host')}"
        self.host.start(*words, token, "--address=127.0.0.1", "--port=0")
        self.cluster.wait_for(lambda: bool(self.hosts()), 30, "the host has joined")
        body = {"model": "far", "worker_type": "llm", "engine": "fake", "host": "b"}
        self.cluster.json("POST", "/api/v1/models", body)
        self.cluster.wait_for(lambda: bool(self.cluster.ready("far")), 30, "far is ready")

    def hosts(self) -> list[dict[str, Any]]:
        found = self.cluster.json("GET", "/api/v1/hosts")["hosts"]
        return [one for one in found if one["role"] == "host" and one["heard_s"] is not None]

    def far(self) -> Place:
        (host,), (one,) = self.hosts(), self.cluster.ready("far")
        return Place(host["port"], host["host_id"], one["instance_id"])

    def near(self) -> Place:
        (one,) = self.cluster.ready("echo")
        (pid,) = self.cluster.pids("relay")
        (port,) = [c.laddr.port for c in psutil.Process(pid).net_connections() if not c.raddr]
        return Place(port, "controller", one["instance_id"])

    async def gateway(self, name: str) -> tuple[str, ClientContexts]:
        """The id of a gateway that joins now, and what it shows."""
        folder, facts = self.folder / name, HostFacts(name=name)
        url, token = self.record["control_url"], await asyncio.to_thread(self.token, "gateway")
        answer = await join(url, token, Role.GATEWAY, facts, "", 0, folder)
        return answer.host_id, ClientContexts(folder)

    async def remove(self, gateway_id: str) -> None:
        address = f"/api/v1/hosts/{gateway_id}"
        await asyncio.to_thread(self.cluster.json, "DELETE", address)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    cluster = Cluster(CONFIG + fake_model("echo"), joined_at=LOOPBACK)
    with cluster, HostRun() as host, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        cluster.truth.others.append(host.state_dir)
        made = Fleet(cluster, host, Path(folder))
        made.join_host()
        yield made
        cluster.json("DELETE", "/api/v1/models/far?delete=true")
        assert host.stop() == 0
        assert host.left_behind() == []


async def status(place: Place, who: ClientContexts) -> int:
    return (await fetch(place.engine, "GET", "/v1/models", timeout_s=5, tls=who)).status


async def until_refused(place: Place, who: ClientContexts, within_s: float) -> None:
    ends_s, found = time.monotonic() + within_s, 0
    while found != 403:
        assert time.monotonic() < ends_s, f"answered {found}"
        try:
            found = await status(place, who)
        except UpstreamLost:  # cut at the very moment
            await asyncio.sleep(0.05)


@asynccontextmanager
async def streaming(place: Place, who: ClientContexts) -> AsyncIterator[Callable[[], Any]]:
    """A long answer under way; gives what reads its next part."""
    pool = Pool(place.engine, connect_timeout_s=5, idle_s=60, tls=who)
    body = json.dumps({**LONG, "model": "far"}).encode()
    parts = stream(
        pool.endpoint, "POST", "/v1/completions", headers=[(b"content-type", b"application/json")],
        body=body, timeout_s=10, idle_s=10, pool=pool,
    )  # fmt: skip
    try:
        await anext(parts)
        yield parts.__anext__
    finally:
        await parts.aclose()
        await pool.close()


async def ended(read: Callable[[], Any]) -> None:
    """Read a stream until it is cut."""
    try:
        while True:
            await read()
    except (UpstreamLost, StopAsyncIteration):
        return


def test_a_log_on_a_host_that_is_silent_says_so_and_goes_on_when_it_is_back(fleet: Fleet) -> None:
    instance_id = fleet.far().instance_id
    address = f"/api/v1/instances/{instance_id}/logs"
    assert fleet.cluster.json("GET", address)["logs"][0]["lines"]
    fleet.host.send(signal.SIGSTOP)
    try:
        status, _, body = fleet.cluster.request("GET", address)
        assert status == 503
        assert json.loads(body)["error"]["code"] == "log_unavailable"
        assert "host 'b' does not answer" in json.loads(body)["error"]["message"]
        (log,) = fleet.cluster.json("GET", "/api/v1/models/far/logs")["logs"]
        assert "host 'b' does not answer" in log["error"]
    finally:
        fleet.host.send(signal.SIGCONT)
    assert fleet.cluster.json("GET", address)["logs"][0]["lines"]
    fleet.cluster.wait_for(lambda: bool(fleet.cluster.ready("far")), 30, "well again")


def test_F118_F99_a_removed_gateway_is_cut_off_from_every_relay_at_once(fleet: Fleet) -> None:
    async def main() -> None:
        gone_id, gone = await fleet.gateway("gone")
        _, stays = await fleet.gateway("stays")
        places = [fleet.far(), fleet.near()]
        for place in places:
            assert [await status(place, gone), await status(place, stays)] == [200, 200]
        logs = f"/host/logs/{places[0].instance_id}?tail=5"
        told = await fetch(places[0].relay, "GET", logs, timeout_s=5, tls=stays)
        assert told.status == 403, "no gateway reads logs"
        async with streaming(places[0], gone) as read_gone, streaming(places[0], stays) as read:
            idle = Pool(places[1].engine, connect_timeout_s=5, idle_s=60, tls=gone)
            await fetch(idle.endpoint, "GET", "/v1/models", timeout_s=5, pool=idle)
            assert idle.connection_count == 1
            await fleet.remove(gone_id)
            async with asyncio.timeout(AT_ONCE_S):
                await ended(read_gone)
            for place in places:
                await until_refused(place, gone, AT_ONCE_S)
                assert await status(place, stays) == 200
            ends_s = time.monotonic() + AT_ONCE_S
            while idle.connection_count:
                assert time.monotonic() < ends_s, "its open connection is cut, too"
                await asyncio.sleep(0.02)
            await idle.close()
            assert await read(), "who stays is not disturbed"

    asyncio.run(main())


def test_F118_it_stays_refused_over_restarts_while_no_controller_lives(fleet: Fleet) -> None:
    async def main() -> None:
        gone_id, gone = await fleet.gateway("gone-too")
        _, stays = await fleet.gateway("stays-too")
        far, near = fleet.far(), fleet.near()
        await fleet.remove(gone_id)
        for place in (far, near):
            await until_refused(place, gone, AT_ONCE_S)
        (controller,) = fleet.cluster.pids("controller")
        os.kill(controller, signal.SIGSTOP)
        try:
            fleet.host.kill()
            fleet.host.start()
            fleet.cluster.kill("relay")
            for place in (far, near):
                await until_answers(place, stays)
                assert await status(place, gone) == 403
        finally:
            os.kill(controller, signal.SIGCONT)

    asyncio.run(main())
    held = json.loads((fleet.cluster.state_dir / "tls" / REFUSED_FILE).read_bytes())
    assert len(held) == 2


async def until_answers(place: Place, who: ClientContexts) -> None:
    ends_s = time.monotonic() + 30
    while True:
        try:
            if await status(place, who) == 200:
                return
        except UpstreamLost:
            pass
        assert time.monotonic() < ends_s, "the relay is back"
        await asyncio.sleep(0.05)
