"""The controller process: a LocalWorkerManager with a store on disk and the admin API in front.

It is crash-only: SIGKILL loses nothing, and the next controller adopts the workers.
"""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

from hostler.admin.api import admin_app
from hostler.admin.control import Status
from hostler.admin.lead import Lead
from hostler.admin.leading import leading
from hostler.admin.settings import Running
from hostler.admin.tokens import TokenDesk
from hostler.app.auth import KeyRing, ensure_admin_key
from hostler.app.config import Config, state_dir
from hostler.app.loading import Loaded
from hostler.app.paths import StatePaths
from hostler.app.supervision import ask_supervisor
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.app.version import installed_version
from hostler.core.errors import StartupError
from hostler.core.worker import OperatorEvent
from hostler.engines.process import best_isolation
from hostler.manager.control import LocalControl
from hostler.manager.host_rules import HostRules, facts, startable
from hostler.manager.local import LocalWorkerManager
from hostler.storage.store import Store
from hostler.storage.writer import Writer
from hostler.wire.asgi import AsgiBridge
from hostler.wire.server import HttpServer

log = logger(__name__)


class Controller(LocalControl):
    """The manager as the admin API sees it, with what the process knows of itself."""

    def __init__(self, manager: LocalWorkerManager, models_dir: Path) -> None:
        super().__init__(manager)
        self.models_dir = models_dir

    def status(self) -> Status:
        best: Counter[str] = Counter()
        for deployment in self.deployments():
            states = {data.state.value for data in self.run_data(deployment.name)}
            best[next((state for state in _BEST_FIRST if state in states), "stopped")] += 1
        return Status(
            version=installed_version(),
            incarnation=self.manager.registry.incarnation,
            uptime_s=round(self.uptime_s, 3),
            controller_pid=os.getpid(),
            isolation=best_isolation().value,
            models=dict(best),
            machine=facts(
                socket.gethostname(),
                HostRules(),
                self.models_dir,
                engines_here=_engines_here(),
                promised_bytes=0,
            ),
            details={
                "settled": not self.manager.registry.unheard,
                "snapshot": self.manager.registry.version,
            },
        )


async def run_controller(
    config: Config,
    stop: asyncio.Event,
    hasten: asyncio.Event,
    control: socket.socket | None = None,
    relay_port: int = 0,
    in_use: Callable[[], Loaded] | None = None,
) -> None:
    """Serve until `stop` is set, then drain and stop every worker; `hasten` ends them at once.

    control: the control port's listening socket. relay_port: of the relay before the models here.
    in_use: the settings as its gateways have them now; when left out, as it has them.

    Raises:
        StartupError: the store or a socket cannot be used.
    """
    paths = StatePaths(state_dir(config))
    paths.create()
    async with leading(config, paths, stop, control) as lead:
        if lead is not None:
            running = partial(_running, config, in_use or partial(Loaded, config=config))
            await _run(config, paths, lead, stop, hasten, control, relay_port, running)


# Private


@cache
def _engines_here() -> tuple[str, ...]:
    """What is installed changes with a new process alone."""
    return startable(HostRules())


def _running(own: Config, in_use: Callable[[], Loaded]) -> Running:
    return Running(loaded=in_use(), own=own)


async def _run(
    config: Config,
    paths: StatePaths,
    lead: Lead,
    stop: asyncio.Event,
    hasten: asyncio.Event,
    control: socket.socket | None,
    relay_port: int,
    running: Callable[[], Running],
) -> None:
    """Lead until asked to stop."""
    manager = LocalWorkerManager(config, store=lead.store, control=control, relay_port=relay_port)
    try:
        await Writer("admin key").do(ensure_admin_key, lead.store, paths, lead.folder)
        await manager.start()
    except BaseException:  # boundary: what cannot start here may start elsewhere
        await lead.give_back()
        raise
    try:
        if lead.before:
            manager.journal.tell(OperatorEvent(kind="controller.leads", message=lead.story))
        async with _admin_server(manager, lead.store, paths, config, running):
            await _until(stop, manager)
            await lead.give_back()  # first: the next one starts its models while ours end
            await _end(manager, hasten)
    finally:
        await manager.stop(ignore_exception=True)


_BEST_FIRST = ("ready", "suspect", "starting", "fetching", "pending", "draining", "failed")


@asynccontextmanager
async def _admin_server(
    manager: LocalWorkerManager,
    store: Store,
    paths: StatePaths,
    config: Config,
    running: Callable[[], Running],
) -> AsyncIterator[None]:
    port = manager.control_port
    ring = KeyRing(key.view for key in store.keys())

    def keys_changed() -> None:
        nonlocal ring
        ring = KeyRing(key.view for key in store.keys())
        manager.keys_changed()

    app = admin_app(
        Controller(manager, paths.models_dir),
        store,
        lambda: ring,
        on_keys_changed=keys_changed,
        writer=manager.writer,
        supervisor=partial(ask_supervisor, paths.up_socket),
        desk=TokenDesk(store, manager.journal.tell, port.url, port.fingerprint),
        running=running,
        place=lambda: f"{manager.registry.incarnation}.{manager.registry.version}",
    )
    async with asyncio.TaskGroup() as tasks:
        server = HttpServer(AsgiBridge(app, tasks), limits=config.limits, name="admin")
        await server.listen_unix(paths.admin_socket)
        holding = tasks.create_task(asyncio.Event().wait(), name="admin.hold")
        try:
            yield
        finally:
            await server.close(0.5)
            holding.cancel()


async def _until(stop: asyncio.Event, manager: LocalWorkerManager) -> None:
    """Return when asked to stop. A part of the manager that died ends the process, loudly: its
    supervisor starts the next one, which adopts the workers.
    """
    await first_of(stop.wait(), _watched(manager))


async def _watched(manager: LocalWorkerManager) -> None:
    try:
        await manager.watch()
    except Exception as error:  # boundary: the process; nothing here is carried out any more
        log.error("controller.died", error=error)
        await manager.abandon()
        raise StartupError("a part of the controller died; its log says which") from error


async def _end(manager: LocalWorkerManager, hasten: asyncio.Event) -> None:
    """Drain; at the second signal, at once."""
    async with asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(manager.stop(ignore_exception=True), name="stop")
        hurry = tasks.create_task(hasten.wait(), name="hasten")
        await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await manager.hasten()
            await stopping
        hurry.cancel()
