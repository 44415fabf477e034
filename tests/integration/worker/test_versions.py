"""Processes of two versions of Hostler meet: the one before is understood, a stranger is told so."""

import asyncio
import json
import time
from typing import Any

import pytest

from hostler.app.config import HttpLimits
from hostler.core.lifecycle import State
from hostler.core.serving import Priority
from hostler.core.snapshot import PROTOCOL, Endpoint, Snapshot
from hostler.registry.mirror import SnapshotMirror
from hostler.wire.client import fetch
from hostler.wire.server import Exchange, HttpServer
from tests.integration.worker.launch import Controller, controller, until

# What a worker of protocol 2 sends, as recorded.
REGISTRATION: dict[str, Any] = {
    "protocol": 2,
    "instance_id": "i0",
    "epoch": 1,
    "secret": "hunter2-hunter2-hunter2-hunter2-",
    "pid": 4242,
    "endpoint": {"socket": "/nowhere/i0.sock"},
    "upstream_model": "m",
    "metadata": {"model": "m", "worker_type": "llm", "context_length": 2048},
    "concurrency": 4,
    "memory_bytes": 52428800,
    "draining": False,
}
BEAT: dict[str, Any] = {
    "instance_id": "i0",
    "epoch": 1,
    "secret": "hunter2-hunter2-hunter2-hunter2-",
    "seq": 1,
    "engine_ok": True,
    "draining": False,
    "in_flight": 0,
    "memory_bytes": 52428800,
}
DEPARTURE = {key: BEAT[key] for key in ("instance_id", "epoch", "secret")} | {"reason": "bye"}
# What a controller of protocol 2 publishes, as recorded.
SNAPSHOT = (
    b'{"protocol":2,"incarnation":3,"version":7,"models":[{"name":"m","worker_type":"llm","engine":"fake","wanted":1,'
    b'"states":[["ready",1]]}],"instances":[{"instance_id":"i0","epoch":1,"model_name":"m",'
    b'"worker_type":"llm","engine":"fake","state":"ready","endpoint":{"socket":"/nowhere/i0.sock"},'
    b'"concurrency":4,"upstream_model":"m"}],"keys":[{"key_id":"k","secret_hash":"00","scopes":["inference"]}]}\n'
)


async def post(fleet: Controller, route: str, body: dict[str, Any]) -> tuple[int, Any]:
    endpoint = Endpoint(socket=str(fleet.socket))
    answer = await fetch(endpoint, "POST", route, body=json.dumps(body).encode(), timeout_s=10.0)
    return answer.status, json.loads(answer.body)


def test_F78_a_worker_of_the_protocol_before_is_understood() -> None:
    async def main() -> None:
        async with controller() as fleet:
            spec = fleet.spec(engine="fake", instance_id="i0")
            fleet.expect(spec)
            status, answer = await post(fleet, "/register", REGISTRATION)
            assert (status, answer["registered"]) == (200, True), answer
            assert (await post(fleet, "/beat", BEAT))[0] == 200
            record = fleet.registry.record("i0")
            assert record is not None
            assert (record.instance.state, record.beat_seq) == (State.READY, 1)
            assert (await post(fleet, "/deregister", DEPARTURE))[0] == 200

    asyncio.run(main())


@pytest.mark.parametrize("number", [0, PROTOCOL + 1, 99])
def test_F78_a_worker_of_a_protocol_nobody_knows_is_told_so(number: int) -> None:
    async def main() -> None:
        async with controller() as fleet:
            fleet.expect(fleet.spec(engine="fake", instance_id="i0"))
            strange = {**REGISTRATION, "protocol": number, "epoch": "of another kind", "more": [1]}
            status, answer = await post(fleet, "/register", strange)
            assert status == 409
            assert answer["error"]["code"] == "conflict"
            told = answer["error"]["message"]
            assert f"speaks protocol {number}" in told
            assert f"{PROTOCOL - 1} and {PROTOCOL}" in told
            record = fleet.registry.record("i0")
            assert record is not None
            assert record.instance.state is not State.READY

    asyncio.run(main())


def test_F78_a_gateway_takes_snapshots_of_the_protocol_before_and_no_stranger_s() -> None:
    lines = [SNAPSHOT, b'{"protocol":99,"incarnation":9,"version":9,"models":"elsewhere"}\n']

    def publish(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-type", b"application/x-ndjson")], None)
        exchange.write(lines[0])

    async def main() -> None:
        async with controller() as fleet:
            path = fleet.folder / "other.sock"
            server = HttpServer(publish, limits=HttpLimits())
            await server.listen_unix(path)
            mirror = SnapshotMirror(path, time.monotonic)
            async with mirror.running():
                await until(lambda: mirror.snapshot.version == 7)
                assert mirror.snapshot.instances[0].state is State.READY
                key = mirror.snapshot.keys[0]
                assert (key.weight, key.priority) == (1.0, Priority.NORMAL)
                assert mirror.connected
                lines.pop(0)
                await server.close(0.0)
                again = HttpServer(publish, limits=HttpLimits())
                await again.listen_unix(path)
                await until(lambda: not mirror.connected)
                await asyncio.sleep(0.5)
                assert mirror.snapshot.version == 7
                assert not mirror.connected
                await again.close(0.0)

    asyncio.run(main())


def test_F78_every_snapshot_says_its_protocol() -> None:
    async def main() -> None:
        async with controller() as fleet:
            fleet.expect(fleet.spec(engine="fake", instance_id="i0"))
            assert fleet.registry.snapshot.protocol == PROTOCOL
            assert Snapshot().protocol == 1

    asyncio.run(main())
