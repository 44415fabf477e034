"""Simulated hosts do what real ones do, as a real server sees it."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hostler.testing.cluster import LOOPBACK, Cluster, discard, fake_model
from hostler.testing.sim_hosts import SimFleet

HOSTS = 3
MODEL = {
    "model": "far", "worker_type": "llm", "engine": "fake", "replicas": HOSTS, "labels": {"on": "paper"},
}  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Without the oracle at its end: it would look for processes of instances on paper."""
    made = Cluster(fake_model("echo"), joined_at=LOOPBACK)
    try:
        made.start()
        yield made
    finally:
        discard(made)


@asynccontextmanager
async def fleet_of(cluster: Cluster) -> AsyncIterator[SimFleet]:
    made = await asyncio.to_thread(
        cluster.json, "POST", "/api/v1/tokens", {"role": "host", "uses": 0}
    )
    with tempfile.TemporaryDirectory(prefix="hsm", dir="/tmp") as folder:
        fleet = SimFleet(
            made["url"], made["token"], HOSTS, Path(folder), lambda number: {"on": "paper"}
        )
        async with fleet.running():
            yield fleet


async def until(is_true: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(is_true):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def ask(cluster: Cluster) -> tuple[str, str]:
    """The word of the answer, and who gave it."""
    status, headers, body = await asyncio.to_thread(cluster.chat, "far", "hello")
    assert status == 200, body
    said: Any = json.loads(body)["choices"][0]["message"]["content"]
    return said, headers["x-hostler-instance"]


def test_they_join_serve_lose_and_outlast_a_controller(cluster: Cluster) -> None:
    async def main() -> None:
        async with fleet_of(cluster) as fleet:
            await until(lambda: len(fleet.diary.back_at_s) == HOSTS, "all are heard")
            await asyncio.to_thread(cluster.json, "POST", "/api/v1/models", MODEL)
            await until(lambda: len(cluster.ready("far")) == HOSTS, "ready")
            machines = {one["host_name"] for one in cluster.ready("far")}
            assert machines == {"sim0", "sim1", "sim2"}
            said, chosen = await ask(cluster)
            assert said == "paper"
            assert chosen in fleet.ready()

            fleet.ready()[chosen].fail(chosen)
            await until(lambda: chosen not in fleet.ready(), "lost")
            await until(
                lambda: chosen not in {one["instance_id"] for one in cluster.ready("far")}, "told"
            )
            await until(lambda: len(cluster.ready("far")) == HOSTS, "replaced")

            before, now = fleet.diary.incarnation, {one for one in fleet.ready()}
            await asyncio.to_thread(cluster.kill, "controller")
            await until(
                lambda: fleet.diary.incarnation > before and len(fleet.diary.back_at_s) == HOSTS, "back"
            )  # fmt: skip
            await until(
                lambda: cluster.answers("/api/v1/status") and len(cluster.ready("far")) == HOSTS,
                "all are ready again",
            )
            assert fleet.ready().keys() == now, "nothing was started anew"
            assert (await ask(cluster))[0] == "paper"

    asyncio.run(main())
