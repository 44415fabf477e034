"""What a controller that stands by answers, on each of its sockets. No database, no other process."""

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from hostler.admin.standby import StandBy
from hostler.app.auth import new_key
from hostler.app.paths import StatePaths
from hostler.app.record import read_standby
from hostler.core.errors import ControllerUnavailable
from hostler.core.fleet import Beat
from hostler.core.snapshot import Endpoint
from hostler.registry.client import RegistryClient
from hostler.registry.mirror import SnapshotMirror
from hostler.wire.client import fetch


async def asked(paths: StatePaths, key: str = "") -> tuple[int, str, str]:
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    answer = await fetch(
        Endpoint(socket=str(paths.admin_socket)), "GET", "/api/v1/models", headers=headers,
        timeout_s=5,
    )  # fmt: skip
    error = json.loads(answer.body)["error"]
    return answer.status, error["code"], error["message"]


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    made = StatePaths(tmp_path)
    made.create()
    return made


def test_only_an_administrator_is_told_who_leads(paths: StatePaths) -> None:
    admin, app = new_key(["admin"]), new_key(["inference"])

    async def main() -> None:
        standby = StandBy(paths, "bert")
        async with standby.running():
            standby.tell("anna leads", "anna")
            assert "anna" not in (await asked(paths, admin.plain))[2]  # it knows no keys yet
            standby.know([admin.view, app.view])
            told = (503, "standby", "this controller (bert) stands by: anna leads")
            assert await asked(paths, admin.plain) == told
            assert (await asked(paths))[:2] == (401, "invalid_api_key")
            assert (await asked(paths, app.plain))[:2] == (403, "insufficient_scope")
            record = read_standby(paths)
            assert record is not None
            assert (record.leader, "anna leads" in record.text) == ("anna", True)
            health = await fetch(
                Endpoint(socket=str(paths.admin_socket)), "GET", "/health", timeout_s=5
            )
            assert health.status == 200
        assert read_standby(paths) is None

    asyncio.run(main())


def test_it_holds_workers_and_gateways_until_another_leads(paths: StatePaths) -> None:
    async def main() -> None:
        client = RegistryClient(paths.registry_socket)
        mirror = SnapshotMirror(paths.registry_socket, asyncio.get_running_loop().time)
        beat = Beat(instance_id="i", epoch=1, secret="s", seq=1)
        standby = StandBy(paths, "bert")
        async with mirror.running():
            async with standby.running():
                assert client.is_held()
                with pytest.raises(ControllerUnavailable):
                    await client.beat(beat)
                await asyncio.sleep(0.2)  # its gateway asks meanwhile, and goes on
                await standby.let_workers_go()
                assert not client.is_held()
                await standby.hold_workers()
                assert client.is_held()
            assert not client.is_held()

    asyncio.run(main())


def test_who_calls_the_control_port_is_turned_away_at_once(paths: StatePaths) -> None:
    async def call(port: int, within_s: float) -> bytes:
        """What is said there until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(within_s):
                return await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as control:
            port = control.getsockname()[1]
            async with StandBy(paths, "bert", control).running():
                for _ in range(3):
                    assert await call(port, 5.0) == b""
            with pytest.raises(TimeoutError):  # it waits for who leads then
                await call(port, 0.2)

    asyncio.run(main())
