"""The control port of a manager: who vouches, who belongs here, and who answers.

The listening socket is the supervisor's, so that machines that connect while a controller is restarted
wait a moment instead of being refused.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.registry.control import ControlServer
from hostler.registry.joins import Joins
from hostler.wire.door import raise_most_files
from hostler.wire.identity import Peer, server_certificates

if TYPE_CHECKING:
    from hostler.manager.local import LocalWorkerManager
    from hostler.wire.authority import Authority

log = logger(__name__)

FILES_A_CONNECTION, SPARE_FILES = 2, 1024  # the server of wire counts two
LOOK_EVERY_S = 3600.0  # whether this machine's own certificate must be renewed


class ControlPort:
    """Where other machines find this controller. url: "" when they cannot."""

    def __init__(self, url: str = "", fingerprint: str = "") -> None:
        self.url = url
        self.fingerprint = fingerprint


@asynccontextmanager
async def control_port(
    config: Config, manager: "LocalWorkerManager", sock: socket.socket | None, relay_port: int = 0
) -> AsyncIterator[ControlPort]:
    """Serve it while the block lasts, where the settings ask for it; keep our certificate good.

    Raises:
        ConfigError, StartupError: the authority, or a given certificate, cannot be used.
    """
    if config.control is None and not config.server.tls:
        yield ControlPort()
        return
    from hostler.registry import own_authority  # brings cryptography: 8 MB

    authority = await asyncio.to_thread(own_authority.open_authority, config)
    async with asyncio.TaskGroup() as tasks:
        renewing = begin(tasks, Background.CERTIFICATE, _keep_renewed(config, authority))
        try:
            if sock is None:
                yield ControlPort()
                return
            raise_most_files(FILES_A_CONNECTION * config.limits.connections + SPARE_FILES)
            joins = Joins(manager.members, authority, tell=manager.journal.tell)
            server = ControlServer(manager.members, joins, limits=config.limits)
            server.plug(Peer.HOST, manager.machines.serve)
            server.plug(
                Peer.GATEWAY,
                lambda exchange, who: manager.registry_server.serve_gateway(
                    exchange, relay_port, who.id
                ),
            )
            url = own_authority.control_url(config, sock.getsockname()[1])
            certificates = server_certificates(authority.folder, clients_must_show=False)
            async with server.running(sock, certificates):
                yield ControlPort(url, authority.fingerprint)
        finally:
            renewing.cancel()


# Private


async def _keep_renewed(config: Config, authority: "Authority") -> None:
    """Make our own certificate anew when that is due; whoever shows it looks at the files.

    Due is it also when this machine has got another address meanwhile.
    """
    from hostler.registry.own_authority import own_names  # as above

    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            authority.names = await asyncio.to_thread(own_names, config)
            await asyncio.to_thread(authority.renew_own)
        except (HostlerError, OSError) as error:
            log.warning("tls.not_renewed", why=str(error), again_in_s=LOOK_EVERY_S)
