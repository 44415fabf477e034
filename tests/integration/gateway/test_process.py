"""The gateway's process: what it serves alone, and how it ends."""

import asyncio
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from hostler.app.config import Config, LifeConfig
from hostler.app.paths import StatePaths
from hostler.core.snapshot import Endpoint
from hostler.gateway.process import run_gateway
from hostler.wire.client import UpstreamLost, fetch


def test_a_gateway_without_a_controller_is_healthy_but_not_ready() -> None:
    async def main() -> None:
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        paths = StatePaths(folder)
        paths.create()
        sock = socket.create_server(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        stop = asyncio.Event()
        config = Config(life=LifeConfig(drain_timeout_s=1.0))
        tcp = Endpoint(host="127.0.0.1", port=port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(run_gateway(paths, config, sock, stop))
                while not paths.gateway_socket.exists():  # noqa: ASYNC110 - a file has no event
                    await asyncio.sleep(0.01)
                for endpoint in (tcp, Endpoint(socket=str(paths.gateway_socket))):
                    health = await fetch(endpoint, "GET", "/health", timeout_s=2)
                    ready = await fetch(endpoint, "GET", "/ready", timeout_s=2)
                    api = await fetch(endpoint, "GET", "/api/v1/models", timeout_s=2)
                    assert (health.status, ready.status, api.status) == (200, 503, 503)
                assert paths.gateway_socket.stat().st_mode & 0o077 == 0
                stop.set()
            assert not paths.gateway_socket.exists()
            with pytest.raises(UpstreamLost) as caught:
                await fetch(tcp, "GET", "/health", timeout_s=1)
            assert caught.value.refused
        finally:
            shutil.rmtree(folder)

    asyncio.run(main())
