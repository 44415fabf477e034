"""Ray beside a manager: who asks it for places, and how the host processes there join."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hostler.app.config import Config
from hostler.app.telemetry import logger
from hostler.app.tokens import new_token
from hostler.core.errors import ConfigError
from hostler.core.hosts import Role, Standing
from hostler.core.lifecycle import State
from hostler.core.placing import NodeView
from hostler.manager.hands import SeatsToCome
from hostler.manager.plan import GONE
from hostler.manager.ray_checks import check_installed, check_token
from hostler.manager.ray_cluster import RayCluster
from hostler.manager.ray_seats import Invitation, RaySeats, Seated

if TYPE_CHECKING:
    from hostler.manager.local import LocalWorkerManager

log = logger(__name__)

NO_PORT = "ray.address needs a control port for its nodes: `hostler up --tls`, or [control]"

TOKEN_S = 600.0  # a host process joins within this, or is given another


@asynccontextmanager
async def ray_places(
    config: Config, manager: "LocalWorkerManager", url: str, fingerprint: str
) -> AsyncIterator[None]:
    """Place instances by Ray while the block lasts, where the settings ask for it.

    url, fingerprint: of the control port, where the host processes join.
    """
    if not config.ray.address:
        yield
        return
    if not url:
        raise ConfigError(NO_PORT)
    mark = fingerprint[:12]  # whoever has our authority goes on with what we left on the nodes
    cluster = RayCluster(
        config.ray.address,
        mark,
        is_lasting=manager.is_lasting,
        answered=lambda: manager.reconciler.wake(),
    )

    async def invite(node: NodeView) -> Invitation:
        made = new_token(
            Role.HOST, fingerprint, lasts_s=TOKEN_S, uses=1, name=f"ray {node.address}"
        )
        await manager.writer.do(manager.store.save_token, made.stored)
        where = await _url(cluster, url)
        return Invitation(
            arguments=(
                "host",
                "join",
                f"--controller={where}",
                f"--name=ray-{node.address}",
                f"--address={node.address}",
                "--port=0",
                "--json",
            ),
            folder=f"{mark}-{node.address}",
            token=made.plain,
        )

    machines = manager.machines
    seats = RaySeats(
        cluster,
        hosts=machines.book.hosts,
        seated=lambda: _seated(manager),
        invite=invite,
        wake=lambda: manager.reconciler.wake(),
        failed=manager.machines.hands.fail,
        lost=lambda instance_id, why: _lost(manager, instance_id, why),
        clock=manager.clock,
    )
    machines.hands.seats = seats
    try:
        async with seats.running():
            yield
    finally:
        machines.hands.seats = SeatsToCome()
        if not manager.is_lasting:  # nobody will come and find it
            await cluster.put_away()


def check_ray(config: Config) -> None:
    """Return when Ray can be asked, as far as that can be said by looking here.

    Raises:
        StartupError: what is missing. ConfigError: there is no port for its nodes to join at.
    """
    if config.ray.address:
        if config.control is None:
            raise ConfigError(NO_PORT)
        check_installed()
        check_token()


# Private


async def _url(cluster: RayCluster, url: str) -> str:
    """The control port at the address by which Ray's nodes know this machine."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{await cluster.own_address()}:{parts.port}"


def _seated(manager: "LocalWorkerManager") -> Iterator[Seated]:
    by_key = {one.worker_key: one for one in manager.wishes.all()}
    distant = manager.machines.distant
    for instance in manager.registry.instances():
        host_id = distant.host_id(instance.instance_id)
        deployment = by_key.get(instance.worker_key)
        if host_id and deployment is not None and instance.state not in GONE:
            yield Seated(
                instance_id=instance.instance_id,
                deployment=deployment,
                host_id=host_id,
                held=distant.held(instance.instance_id),
            )


def _lost(manager: "LocalWorkerManager", instance_id: str, why: str) -> bool:
    """An instance has no place any more: it moves. One whose host is silent is judged by that, for now."""
    host = manager.machines.book.known(manager.machines.distant.host_id(instance_id))
    record = manager.registry.record(instance_id)
    if record is None or record.instance.state in (*GONE, State.DRAINING):
        return True
    if host is not None and host.standing not in (Standing.ALIVE, Standing.DRAINING):
        return False
    log.info("ray.place_lost", instance_id=instance_id, why=why, host=host.name if host else "")
    manager.machines.hands.drain(instance_id, why)
    return True
