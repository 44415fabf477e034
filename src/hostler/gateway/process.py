"""The gateway's process: mirror, gateway and server, from start to the end of the drain."""

import asyncio
import socket
from time import monotonic

from hostler.app.auth import is_loopback
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.gateway.gateway import Gateway
from hostler.registry.client import SnapshotMirror
from hostler.wire.hosts import HostPolicy
from hostler.wire.server import HttpServer


async def run_gateway(
    paths: StatePaths, config: Config, sock: socket.socket, stop: asyncio.Event
) -> None:
    """Serve on a bound socket, and on the gateway's own Unix socket, until `stop` is set.

    Stopping: no new connections, requests under way may finish for `drain_timeout_s`, then they are
    cut.
    """
    mirror = SnapshotMirror(paths.registry_socket, monotonic)
    gateway = Gateway(config, mirror, paths.admin_socket)
    hosts = HostPolicy(
        (config.server.host, *config.server.allowed_hosts),
        any_address=not is_loopback(config.server.host),
    )
    servers = [
        HttpServer(
            gateway.handle,
            limits=config.limits,
            allowed_hosts=allowed,
            on_head=gateway.judge_head,
            name="gateway",
        )
        for allowed in (hosts, None)
    ]
    async with mirror.running(), gateway.running():
        try:
            await servers[0].listen(sock)
            await servers[1].listen_unix(paths.gateway_socket)
            await stop.wait()
        finally:
            await asyncio.gather(*(server.close(config.life.drain_timeout_s) for server in servers))
