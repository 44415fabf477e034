"""The host process: a Host, its relay and its link, from a membership, until it is asked to stop.

It is crash-only: SIGKILL loses nothing; the next one on this folder adopts the workers.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import Config, HttpLimits
from hostler.app.environment import environment
from hostler.app.notify import notifying
from hostler.app.orphan import ENDS_WITH_IT, STDIN_VARIABLE, when_stdin_ends
from hostler.app.paths import StatePaths
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.core.errors import NotFound
from hostler.core.hosts import InstanceReport, Role
from hostler.core.snapshot import Endpoint
from hostler.core.worker import OperatorEvent
from hostler.manager.brought import BroughtWorker
from hostler.manager.controllers import Controllers
from hostler.manager.host import Host
from hostler.manager.host_logs import tell_log
from hostler.manager.membership import Membership, endpoint_of, save_membership
from hostler.registry.joining import keep_renewed
from hostler.storage.sql import SqlStore
from hostler.wire.client import Pool
from hostler.wire.identity import ClientContexts, server_certificates
from hostler.wire.relay import Relay
from hostler.wire.server import Exchange, HttpServer

log = logger(__name__)

_LOCK_WAIT_S = 0.5  # of one try; the writer tries again
_CONNECT_S = 3.0
_IDLE_S = 30.0
_LOOK_S = 0.5
_UNKEPT_IDLE_S = 5.0  # a host process that nobody keeps, and that runs nothing, ends
_UNKEPT_SILENT_S = 300.0  # likewise when no controller is heard
_JSON = ((b"content-type", b"application/json"),)


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """GET /status on host.sock. heard_s: since a controller was last heard."""

    host_id: str
    name: str
    role: Role
    pid_run: str
    controllers: tuple[str, ...]
    port: int
    heard_s: float
    is_heard: bool
    is_draining: bool
    is_fenced: bool
    incarnation: int
    version: int
    instances: tuple[InstanceReport, ...]


async def run_host(
    paths: StatePaths,
    config: Config,
    membership: Membership,
    stop: asyncio.Event,
    hasten: asyncio.Event,
    *,
    sock: socket.socket | None = None,
    hear: Callable[[OperatorEvent], None] = lambda event: None,
    up: Callable[[], None] = lambda: None,
) -> None:
    """Work for the controller until `stop` is set; then drain and say goodbye. `hasten`: at once.

    sock: bound, for the relay, which owns it from now on; None: for a controller on a Unix socket.
    hear: told what happens to instances here. up: called once it takes orders.

    Raises:
        StartupError: another process serves this folder, the store cannot be used, or the controller
            wants no more of this host. What a worker brought by hand failed of.
    """
    paths.create()
    store = SqlStore(paths.database, busy_timeout_s=_LOCK_WAIT_S)
    try:
        host = _make(paths, config, membership, store, hear)
        if sock is not None:
            host.voice.address, host.voice.port = membership.address, sock.getsockname()[1]
        async with AsyncExitStack() as stack:
            if sock is not None:
                host.serving = partial(_distant, paths, host, sock)
            await stack.enter_async_context(host.running())
            await stack.enter_async_context(_status_server(paths, membership, host))
            await stack.enter_async_context(notifying())
            up()
            await first_of(stop.wait(), host.finished.wait(), _not_needed(host))
            await _end(host, hasten)
    finally:
        store.close()
    if host.failure is not None:
        if host.link.is_unknown:  # what starts it next with a token may join anew
            over = msgspec.structs.replace(membership, is_over=True)
            save_membership(paths.host_membership, over)
        raise host.failure


# Private


def _make(
    paths: StatePaths,
    config: Config,
    membership: Membership,
    store: SqlStore,
    hear: Callable[[OperatorEvent], None],
) -> Host:
    contexts = None if membership.is_near else ClientContexts(paths.tls_dir)

    def pool(endpoint: Endpoint) -> Pool:
        return Pool(endpoint, connect_timeout_s=_CONNECT_S, idle_s=_IDLE_S, tls=contexts)

    controllers = Controllers([endpoint_of(url) for url in membership.controllers], pool)
    if membership.offer is not None:
        return BroughtWorker(
            paths, config, store, membership, controllers, offer=membership.offer, hear=hear
        )
    return Host(paths, config, store, membership, controllers, hear=hear)


async def _not_needed(host: Host) -> None:
    """Return some time after the keeper of this process is gone, once nobody has anything running here.

    Not at once: Ray ends its actors when it is started anew, and that shall cost no request (F43).
    """
    is_unkept = asyncio.Event()
    when_stdin_ends(is_unkept.set)
    await is_unkept.wait()
    log.warning("host.unkept")
    if (
        environment(STDIN_VARIABLE) == ENDS_WITH_IT
    ):  # its program is gone, and comes back as another
        return
    idle_s = 0.0
    while idle_s < _UNKEPT_IDLE_S and host.link.silence_s < _UNKEPT_SILENT_S:
        await asyncio.sleep(_LOOK_S)
        idle_s = 0.0 if host.alive else idle_s + _LOOK_S


async def _end(host: Host, hasten: asyncio.Event) -> None:
    """Drain; at the second signal, at once."""
    async with asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(host.stop(), name="stop")
        hurry = tasks.create_task(hasten.wait(), name="hasten")
        await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await host.hasten()
            await stopping
        hurry.cancel()


@asynccontextmanager
async def _distant(paths: StatePaths, host: Host, sock: socket.socket) -> AsyncIterator[None]:
    """What it takes to work for a controller on another machine: the relay, and a certificate that lasts."""
    relay = Relay(
        host.sockets,
        server_certificates(paths.tls_dir, clients_must_show=True),
        beat=lambda: msgspec.json.encode(host.link.asked()),
        logs=partial(tell_log, paths, host.own_name),
    )
    kept = host.notebook.orders
    relay.refuse(kept.refused if kept is not None else ())
    host.refuse = relay.refuse
    async with relay.running(sock), asyncio.TaskGroup() as tasks:
        renewing = keep_renewed(host.link.url, paths.tls_dir)
        job = begin(tasks, Background.HOST_RENEWAL, renewing)
        try:
            yield
        finally:
            job.cancel()


@asynccontextmanager
async def _status_server(
    paths: StatePaths, membership: Membership, host: Host
) -> AsyncIterator[None]:
    """Say on a Unix socket how it is, for `hostler host status`."""

    def handle(exchange: Exchange) -> None:
        request = exchange.request
        if (request.method, request.path) == ("GET", "/status"):
            exchange.send(200, msgspec.json.encode(_status(membership, host)), _JSON)
        else:
            exchange.send_error(NotFound(f"a host has no {request.method} {request.path}"))

    server = HttpServer(handle, limits=HttpLimits(), name="host")
    await server.listen_unix(paths.host_socket)
    try:
        yield
    finally:
        await server.close(0.0)


def _status(membership: Membership, host: Host) -> HostStatus:
    incarnation, version = host.link.known
    return HostStatus(
        host_id=membership.host_id,
        name=membership.name,
        role=membership.role,
        pid_run=host.run_id,
        controllers=membership.controllers,
        port=host.voice.port,
        heard_s=round(host.link.silence_s, 3),
        is_heard=host.link.is_heard,
        is_draining=host.is_draining,
        is_fenced=host.is_fenced,
        incarnation=incarnation,
        version=version,
        instances=host.voice.reports(whole=True),
    )
