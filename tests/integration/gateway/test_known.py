"""What was ordered is known to the gateway that answers: a new key works at once, a revoked one no more."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from hostler.app.config import HttpLimits
from hostler.core.change import PLACE_HEADER, Change
from hostler.core.snapshot import Endpoint
from hostler.gateway.controller import KNOWN_S, ControllerLine
from hostler.testing.cluster import Cluster, fake_model
from hostler.wire.client import Response, fetch
from hostler.wire.server import HttpServer
from tests.integration.wire.running import serving, socket_folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(fake_model("echo")) as made:
        yield made


def test_a_new_key_can_be_used_at_once_and_a_revoked_one_no_more(cluster: Cluster) -> None:
    seen = []
    for number in range(50):
        made = cluster.json("POST", "/api/v1/keys", {"name": f"key {number}"})
        seen.append(cluster.request("GET", "/v1/models", key=made["key"])[0])
        key_id = made["info"]["key_id"]
        assert cluster.request("DELETE", f"/api/v1/keys/{key_id}")[0] == 200
        seen.append(cluster.request("GET", "/v1/models", key=made["key"])[0])
    assert seen == [200, 401] * 50


@asynccontextmanager
async def line_to(place: str) -> AsyncIterator[tuple[ControllerLine, Endpoint]]:
    """A gateway's line to a controller that says so with every answer."""
    async with socket_folder() as folder:
        controller = HttpServer(
            lambda exchange: exchange.send(201, b"made", [(PLACE_HEADER.encode(), place.encode())]),
            limits=HttpLimits(),
        )
        await controller.listen_unix(folder / "admin.sock")
        line = ControllerLine(folder / "admin.sock")
        try:
            async with serving(line.relay) as (_, endpoint):
                yield line, endpoint
        finally:
            await line.close()
            await controller.close(0.0)


def order(endpoint: Endpoint) -> "asyncio.Task[Response]":
    asked = fetch(endpoint, "POST", "/api/v1/keys", body=b"{}", timeout_s=10.0)
    return asyncio.create_task(asked)


def test_an_answer_waits_for_its_snapshot_and_no_longer() -> None:
    async def main() -> None:
        async with line_to("3.7") as (line, endpoint):
            line.take(Change(incarnation=3, version=6))
            waiting = order(endpoint)
            await asyncio.sleep(0.1)
            assert not waiting.done()
            line.take(Change(incarnation=3, version=7))
            answer = await waiting
            assert (answer.status, answer.body) == (201, b"made")
            assert PLACE_HEADER.encode() not in dict(answer.headers)
            for later in ((3, 7), (3, 8), (4, 1)):
                line.take(Change(incarnation=later[0], version=later[1]))
                async with asyncio.timeout(KNOWN_S / 2):
                    assert (await order(endpoint)).body == b"made"

    uvloop.run(main())


def test_an_answer_does_not_wait_for_ever() -> None:
    async def main() -> None:
        async with line_to("9.1") as (_, endpoint):
            began_s = time.monotonic()
            assert (await order(endpoint)).body == b"made"
            assert time.monotonic() - began_s >= KNOWN_S

    uvloop.run(main())


def test_who_leaves_while_the_answer_waits_leaves_nothing() -> None:
    async def main() -> None:
        async with line_to("3.7") as (line, endpoint):
            waiting = order(endpoint)
            await asyncio.sleep(0.1)
            waiting.cancel()
            await asyncio.wait([waiting])
            line.take(Change(incarnation=3, version=7))
            async with asyncio.timeout(KNOWN_S / 2):
                assert (await order(endpoint)).status == 201

    uvloop.run(main())
