"""Simulated machines with a thousand instances beside a `Cluster`, and ten thousand requests.

For what shows them all. The server is real; the machines are one process beside it:

    python -m hostler.testing.paper_fleet URL TOKEN COUNT FOLDER    # until its standard input ends
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import uvloop

from hostler.core.snapshot import Endpoint
from hostler.testing.cluster import Cluster
from hostler.testing.sim_hosts import SimFleet
from hostler.wire.client import Pool, fetch
from hostler.wire.door import raise_most_files

PER_MODEL = RACK = 10  # instances of a model, and machines that share a label
_WITHIN_S = 120.0
_ASKERS = 8


@contextmanager
def paper_instances(cluster: Cluster, count: int) -> Iterator[list[str]]:
    """So many instances, a tenth as many machines; yields the models' names once all are ready.

    The cluster must be one that others can join (`joined_at`); stop it with `discard`."""
    hosts = max(PER_MODEL, count // 10)
    made = cluster.json("POST", "/api/v1/tokens", {"role": "host", "uses": 0})
    with tempfile.TemporaryDirectory(prefix="hsm", dir="/tmp") as folder:
        words = [made["url"], made["token"], str(hosts), folder]
        fleet = subprocess.Popen(
            [sys.executable, "-m", "hostler.testing.paper_fleet", *words],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            cluster.wait_for(lambda: _alive(cluster) == hosts, _WITHIN_S, "all have joined")
            names = [f"paper{number}" for number in range(count // PER_MODEL)]
            for number, name in enumerate(names):
                body = {
                    "model": name, "worker_type": "llm", "engine": "fake", "concurrency": 4,
                    "replicas": PER_MODEL, "labels": {"rack": str(number // RACK)},
                }  # fmt: skip
                cluster.json("POST", "/api/v1/models", body)
            _wait_for_all(cluster, names)
            yield names
        finally:
            fleet.kill()
            fleet.communicate()


def ask_many(cluster: Cluster, models: Sequence[str], count: int) -> None:
    """Send so many chats, in turn to each paper model and to each gateway of this machine.

    Once all their instances are ready: a busy machine may have lost some for a moment.

    Raises:
        AssertionError: more than one of ten got no good answer: what is simulated is slow on a busy machine.
    """
    _wait_for_all(cluster, models)
    with ThreadPoolExecutor(1) as thread:  # this one may have a loop
        thread.submit(lambda: asyncio.run(_ask_many(cluster, models, count))).result()


# Private


async def _live(url: str, token: str, count: int, folder: Path) -> None:
    def labels(number: int) -> dict[str, str]:
        return {"rack": str(number // RACK)}

    async with SimFleet(url, token, count, folder, labels).running():
        await asyncio.to_thread(sys.stdin.read)


def _alive(cluster: Cluster) -> int:
    time.sleep(0.2)  # each look is a whole list
    hosts = cluster.json("GET", "/api/v1/hosts")["hosts"]
    return sum(one["standing"] == "alive" for one in hosts)


def _ready(cluster: Cluster, names: Sequence[str]) -> int:
    wanted = set(names)
    time.sleep(0.2)
    models = cluster.json("GET", "/api/v1/models")["models"]
    return sum(one["ready"] for one in models if one["name"] in wanted)


def _wait_for_all(cluster: Cluster, names: Sequence[str]) -> None:
    due = PER_MODEL * len(names)
    cluster.wait_for(lambda: _ready(cluster, names) == due, _WITHIN_S, "all are ready")


async def _ask_many(cluster: Cluster, models: Sequence[str], count: int) -> None:
    key = cluster.admin_key
    fields = [
        (b"authorization", f"Bearer {key}".encode()),
        (b"content-type", b"application/json"),
    ]
    sockets = sorted((cluster.state_dir / "run").glob("gateway*.sock"))
    numbers = iter(range(count))
    statuses: list[int] = []
    refused: list[bytes] = []

    async def ask_on(place: Endpoint) -> None:
        pool = Pool(place, connect_timeout_s=5, idle_s=60)
        try:
            for number in numbers:
                # each another one: of equal ones two lost are enough for all to be refused (F07)
                said = {"role": "user", "content": f"hello {number}"}
                asked = {"model": models[number % len(models)], "messages": [said]}
                answer = await fetch(
                    place, "POST", "/v1/chat/completions", headers=fields,
                    body=json.dumps(asked).encode(), timeout_s=30, pool=pool,
                )  # fmt: skip
                statuses.append(answer.status)
                if answer.status != 200:
                    refused.append(answer.body)
        finally:
            await pool.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(_ASKERS):
            place = Endpoint(socket=str(sockets[number % len(sockets)]))
            tasks.create_task(ask_on(place), name=f"asker {number}")
    assert statuses.count(200) >= 0.9 * count, (Counter(statuses), refused[:3])


if __name__ == "__main__":
    raise_most_files(16_384)
    url, token, count, folder = sys.argv[1:]
    uvloop.run(_live(url, token, int(count), Path(folder)))
