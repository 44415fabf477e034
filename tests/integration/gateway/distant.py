"""Hosts of a test: each a relay process before fake engines, reached over mutual TLS."""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import trustme

from hostler.app.paths import StatePaths
from hostler.core.snapshot import Endpoint
from hostler.testing.netns import Network
from hostler.wire.client import UpstreamLost, fetch
from hostler.wire.identity import ClientContexts, Identity, Peer
from tests.certificates import tls_folder
from tests.integration.gateway.rig import FakeProcess, Rig, rig
from tests.integration.gateway.test_identity import free_port

CA = trustme.CA()


class HostMachine:
    """One relay process and its engines. shown: whose certificate it shows, its own unless said."""

    def __init__(self, paths: StatePaths, host_id: str, address: str, port: int) -> None:
        self.paths = paths
        self.host_id = host_id
        self.address = address
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        paths.create()
        self.show(Identity(Peer.HOST, host_id))

    def show(self, who: Identity, ca: trustme.CA = CA) -> None:
        """Let the relay that is started next show this certificate."""
        tls_folder(self.paths.tls_dir, who, ca)

    def endpoint(self, instance_id: str) -> Endpoint:
        return Endpoint(
            host=self.address, port=self.port, host_id=self.host_id, prefix=f"/i/{instance_id}"
        )

    def launch(self, net: Network | None = None) -> None:
        argv = [sys.executable, "-m", "hostler", "relay", f"--state-dir={self.paths.state_dir}"]
        argv += [f"--host={self.address}", f"--port={self.port}"]
        source = str(Path(__file__).parents[3] / "src")
        self.process = subprocess.Popen(
            argv if net is None else net.command(self.host_id, argv),
            env={**os.environ, "PYTHONPATH": source},
            stderr=subprocess.DEVNULL,
        )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)

    async def engine(self, ours: Rig, name: str = "m", **script: Any) -> FakeProcess:
        """Start an engine behind the relay, and tell the rig the way to it."""
        instance_id = secrets.token_hex(6)
        made = await ours.start_engine(instance_id, name, folder=self.paths.run_dir, **script)
        ours.ways[instance_id] = self.endpoint(instance_id)
        return made

    async def wait(self, tls: ClientContexts) -> None:
        """Wait until the relay answers as itself."""
        for _ in range(400):
            with contextlib.suppress(UpstreamLost):
                await fetch(self.endpoint("none"), "GET", "/health", timeout_s=1, tls=tls)
                return
            await asyncio.sleep(0.025)
        raise AssertionError("the relay did not come up")


@contextlib.asynccontextmanager
async def hosts(
    folder: Path, names: Sequence[str] = ("hosta", "hostb"), net: Network | None = None
) -> AsyncIterator[tuple[Rig, list[HostMachine]]]:
    """A gateway here and so many hosts, on loopback or on the machines of a network by these names."""
    tls = ClientContexts(tls_folder(folder / "gateway", Identity(Peer.GATEWAY, "gate1"), CA))
    machines = [
        HostMachine(
            StatePaths(folder / name),
            name,
            "127.0.0.1" if net is None else net.address(name),
            free_port(),
        )
        for name in names
    ]
    async with rig(tls=tls) as ours:
        try:
            for machine in machines:
                machine.launch(net)
            for machine in machines:
                await machine.wait(tls)
            yield ours, machines
        finally:
            for machine in machines:
                machine.kill()
