"""The relay's process on the controller's own machine: for gateways on others (docs/design/hosts.md).

A host has its relay in its host process. Here it is one of its own, so that an outage of the controller
or of a gateway is none of the relay.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.wire.door import raise_most_files
from hostler.wire.identity import server_certificates
from hostler.wire.refused import LOOK_EVERY_S, RefusedFile
from hostler.wire.relay import Relay, Sockets
from hostler.wire.server import FILES_A_REQUEST

SPARE_FILES = 256
_INSTANCE_ID = re.compile(r"[0-9a-f]{12}")  # none of the other sockets there has such a name

log = logger(__name__)


async def run_relay(
    paths: StatePaths,
    config: Config,
    sock: socket.socket,
    stop: asyncio.Event,
    hasten: asyncio.Event,
    serves: asyncio.Event,
) -> None:
    """Serve on a bound socket until `stop` is set; then finish what is under way, until `hasten` is.

    serves: set when it takes connections.

    Raises:
        ConfigError: there is no certificate in the tls folder, or none that can be used.
    """
    raise_most_files(FILES_A_REQUEST * config.limits.connections + SPARE_FILES)
    async with relaying(paths, config, sock) as relay:
        serves.set()
        log.info("relay.serves", port=sock.getsockname()[1])
        await stop.wait()
        await first_of(relay.drain(config.life.drain_timeout_s), hasten.wait())


@asynccontextmanager
async def relaying(paths: StatePaths, config: Config, sock: socket.socket) -> AsyncIterator[Relay]:
    """Stand before the engines here while the block lasts; no gateway is served that was removed.

    Raises:
        ConfigError: as `run_relay`.
    """
    certificates = server_certificates(paths.tls_dir, clients_must_show=True)
    relay = Relay(local_sockets(paths), certificates, limits=config.limits)
    refused = RefusedFile(paths.tls_dir)
    relay.refuse(refused.news() or ())
    async with relay.running(sock), asyncio.TaskGroup() as tasks:
        heeding = begin(tasks, Background.REFUSED, _heed(relay, refused))
        try:
            yield relay
        finally:
            heeding.cancel()


async def _heed(relay: Relay, refused: RefusedFile) -> None:
    """Serve no gateway that the controller has removed, from the moment it is written down."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        if (news := refused.news()) is not None:
            relay.refuse(news)


def local_sockets(paths: StatePaths) -> Sockets:
    """Find the sockets of the instances that run in this state folder, and no others."""

    def find(instance_id: str) -> tuple[str, str] | None:
        if _INSTANCE_ID.fullmatch(instance_id) is None:
            return None
        engine = paths.engine_socket(instance_id)
        return (str(engine), str(paths.agent_socket(instance_id))) if engine.exists() else None

    return find
