"""The control port of a manager: who vouches, who belongs here, and who answers.

Of a controller the listening socket is the supervisor's, so that machines that connect while it is
restarted wait a moment instead of being refused. A manager in a program binds its own.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from hostler.app.background import Background, begin
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.manager.refusals import keep_refused
from hostler.registry.control import ControlServer
from hostler.registry.joins import Joins
from hostler.wire.door import raise_most_files
from hostler.wire.identity import Peer, server_certificates
from hostler.wire.listening import control_socket, relay_socket
from hostler.worker.relaying import relaying

if TYPE_CHECKING:
    from hostler.manager.local import LocalWorkerManager
    from hostler.wire.authority import Authority

log = logger(__name__)

FILES_A_CONNECTION, SPARE_FILES = 2, 1024  # the server of wire counts two
LOOK_EVERY_S = 3600.0  # whether this machine's own certificate must be renewed


class ControlPort:
    """Where other machines find this manager. url: "" when they cannot."""

    def __init__(self, url: str = "", fingerprint: str = "") -> None:
        self.url = url
        self.fingerprint = fingerprint


@asynccontextmanager
async def control_port(
    config: Config,
    manager: "LocalWorkerManager",
    sock: socket.socket | None = None,
    relay_port: int = 0,
) -> AsyncIterator[ControlPort]:
    """Serve it while the block lasts, where the settings ask for it; keep our certificate good.

    sock: its listening socket; None: one is bound. relay_port: of the relay before the engines here;
        where the socket is ours, the relay is, too.

    Raises:
        ConfigError, StartupError: the authority, a given certificate, or the address cannot be used.
    """
    if config.control is None and not config.server.tls:
        yield ControlPort()
        return
    from hostler.registry import own_authority  # brings cryptography: 8 MB

    authority = await asyncio.to_thread(own_authority.open_authority, config)
    async with AsyncExitStack() as stack:
        if sock is not None:
            raise_most_files(FILES_A_CONNECTION * config.limits.connections + SPARE_FILES)
        elif config.control is not None:
            sock = stack.enter_context(control_socket(config.control))
            relay_port = await stack.enter_async_context(_relay(config, manager.paths))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        jobs = [
            begin(tasks, Background.CERTIFICATE, _keep_renewed(config, authority)),
            begin(tasks, Background.REFUSALS, keep_refused(manager.members, authority.folder)),
        ]
        try:
            if sock is None:
                yield ControlPort()
                return
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
            for job in jobs:
                job.cancel()


# Private


@asynccontextmanager
async def _relay(config: Config, paths: StatePaths) -> AsyncIterator[int]:
    """Stand before the engines here, for gateways on other machines; give the port."""
    assert config.control is not None
    with relay_socket(config.control.host, config.control.relay_port) as sock:
        async with relaying(paths, config, sock):
            yield sock.getsockname()[1]


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
