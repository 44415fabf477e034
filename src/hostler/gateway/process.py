"""The gateway's process: mirror, gateway and server, from start to the end of the drain."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from time import monotonic

from hostler.app.auth import is_loopback
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.core.errors import Draining, StartupError
from hostler.core.snapshot import Endpoint
from hostler.gateway.board import Board
from hostler.gateway.gateway import Gateway
from hostler.gateway.neighbours import Neighbours
from hostler.registry.client import RegistryClient
from hostler.registry.kept import KeptSnapshot
from hostler.registry.mirror import SnapshotMirror
from hostler.wire.cors import Cors
from hostler.wire.door import raise_most_files
from hostler.wire.hosts import HostPolicy
from hostler.wire.identity import CERT_FILE, ClientContexts
from hostler.wire.server import FILES_A_REQUEST, HttpServer
from hostler.wire.tls import Certificates

log = logger(__name__)

# Objects made between two looks for cycles: with 700, as Python has it, looking took 3 % of the CPU.
GARBAGE_OBJECTS = 20_000

SPARE_FILES = 1024  # logs, sockets of ours, idle connections to engines
BROKEN_DRAIN_S = 1.0
FAREWELL_S = 0.5  # between the last error of a drain and the cut
FIRST_SNAPSHOT_S = 0.5  # a controller that lives tells it sooner; without one, /health must answer


async def run_gateway(
    paths: StatePaths,
    config: Config,
    sock: socket.socket,
    stop: asyncio.Event,
    hasten: asyncio.Event | None = None,
    place: "Place | None" = None,
    controllers: Sequence[Endpoint] = (),
) -> None:
    """Serve on a bound socket, and on the gateway's own Unix socket, until `stop` is set.

    Stopping: no new connections, requests under way may finish for `drain_timeout_s`, or until
    `hasten` is set; then they end with the error `draining`.
    place: which gateway it is. Its `leave` is a stop by which no connection is lost: another has
    taken over, so idle ones stay until their next answer, which says that it is the last.
    controllers: the control port of another machine, and of those that stand by for it; none: the
        controller is on this one.

    Raises:
        StartupError: the controller has removed this gateway.
    """
    place = place or Place()
    raise_most_files(FILES_A_REQUEST * config.limits.connections + SPARE_FILES)
    tls = ClientContexts(paths.tls_dir) if (paths.tls_dir / CERT_FILE).exists() else None
    mirror, reporter = _ways(paths, controllers, tls)
    gateway = Gateway(
        config,
        mirror,
        paths.admin_socket,
        tell_doubt=reporter.doubt,
        send_usage=reporter.report_usage,
        tell_demand=reporter.demand,
        # without a certificate no other machine's gateway can be there
        tell_loads=None if tls is None else reporter.loads,
        siblings=lambda: paths.other_gateway_sockets(place.number),
        tls=tls,
    )
    gateway.metrics.number = place.number
    server = config.server
    certificates = Certificates(server.tls_cert, server.tls_key) if server.is_tls else None
    servers = gateway.metrics.servers = _servers(config, gateway, certificates)
    async with mirror.running(), gateway.running(), _among_others(gateway, place, paths):
        try:
            # Until the first snapshot nobody's key is known. Connections wait in the socket's queue.
            wait_s = None if place.is_successor else FIRST_SNAPSHOT_S
            await first_of(mirror.first_snapshot(), stop.wait(), timeout_s=wait_s)
            mirror.recall()
            await servers[0].listen(sock, certificates)
            await servers[1].listen_unix(paths.gateway_socket_of(place.number))
            place.serves.set()
            log.info("gateway.serves", number=place.number, address=_address(sock))
            gc.freeze()  # what lives now lives to the end; requests leave no cycles behind
            gc.set_threshold(GARBAGE_OBJECTS, 20, 20)
            await first_of(stop.wait(), place.leave.wait(), mirror.is_dismissed.wait())
        finally:
            # With a part of it dead it ends soon: a whole one takes the connections that wait.
            is_asked = stop.is_set() or place.leave.is_set() or mirror.is_dismissed.is_set()
            drain_s = config.life.drain_timeout_s if is_asked else BROKEN_DRAIN_S
            for one in servers:
                one.is_handing_over = place.leave.is_set() and not stop.is_set()
            await _close(servers, gateway, drain_s, stop, hasten or asyncio.Event())
    await reporter.close()
    if mirror.is_dismissed.is_set():
        raise StartupError(
            "the controller has removed this gateway, so it has ended; it may join again with a --token"
        )


class Place:
    """Where one gateway stands among others.

    number: from 1. is_successor: another one serves in its place until it does.
    column: its own on the board of this machine's gateways; None: it knows of no others.
    serves: set when it takes connections. leave: to be set when its own successor does.
    """

    def __init__(
        self, *, number: int = 1, is_successor: bool = False, column: int | None = None
    ) -> None:
        self.number = number
        self.column = column
        self.is_successor = is_successor
        self.serves = asyncio.Event()
        self.leave = asyncio.Event()


# Private


def _ways(
    paths: StatePaths, controllers: Sequence[Endpoint], tls: ClientContexts | None
) -> tuple[SnapshotMirror, RegistryClient]:
    """The ways to the controller: what it says, and what it is told."""
    if not controllers:
        near, kept = paths.registry_socket, KeptSnapshot(paths.kept_snapshot)
        return SnapshotMirror(near, monotonic, kept), RegistryClient(near)
    lasting = KeptSnapshot(paths.state_dir / paths.kept_snapshot.name, is_lasting=True)
    mirror = SnapshotMirror(controllers, monotonic, lasting, tls)
    return mirror, RegistryClient(mirror.endpoint, tls=tls, newest=lambda: mirror.endpoint)


def _servers(
    config: Config, gateway: Gateway, certificates: Certificates | None
) -> list[HttpServer]:
    """One for the network, and one for the gateway's own Unix socket."""
    server = config.server
    # A name in our own certificate is ours; a page that rebinds its name cannot show it.
    names = certificates.facts.names if certificates else ()
    hosts = HostPolicy(
        (server.host, *server.allowed_hosts, *names), any_address=not is_loopback(server.host)
    )
    return [
        HttpServer(
            gateway.handle,
            limits=config.limits,
            allowed_hosts=allowed,
            on_head=gateway.judge_head,
            cors=Cors(server.cors_origins) if server.cors_origins else None,
            name="gateway",
            turn=gateway.turn,
        )
        for allowed in (hosts, None)
    ]


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


@asynccontextmanager
async def _among_others(gateway: Gateway, place: Place, paths: StatePaths) -> AsyncIterator[None]:
    """Count slots with the other gateways of this machine, as long as there are any."""
    if place.column is None:
        yield
        return
    with closing(Board(paths.board)) as board:
        others = Neighbours(board, paths.run_dir, place.column, gateway.router)
        gateway.neighbours = others
        async with others.running():
            yield
        gateway.router.join(None)


async def _close(
    servers: list[HttpServer],
    gateway: Gateway,
    drain_s: float,
    stop: asyncio.Event,
    hasten: asyncio.Event,
) -> None:
    """Let requests finish; what still runs then is told so, and has a moment to read it."""

    async def part_from_idle() -> None:
        await stop.wait()
        for server in servers:
            server.close_idle()

    async with asyncio.TaskGroup() as group:
        wait_s = drain_s + FAREWELL_S + 1.0
        closing = [group.create_task(one.close(wait_s), name="gateway.close") for one in servers]
        hurry = group.create_task(hasten.wait(), name="gateway.hasten")
        idle = group.create_task(part_from_idle(), name="gateway.idle")
        both = group.create_task(asyncio.wait(closing), name="gateway.drain")
        await asyncio.wait([both, hurry], timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        if not both.done():
            gateway.relays.end_all(Draining())
            await asyncio.wait([both], timeout=FAREWELL_S)
        for task in (hurry, idle, both, *closing):
            task.cancel()
    for server in servers:
        await server.close(0.0)
