"""How a gateway on another machine than its controller joins, and what it remembers of it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from hostler.app.background import Background, begin
from hostler.app.paths import StatePaths
from hostler.app.private_file import write_private
from hostler.core.errors import ConfigError, StartupError
from hostler.core.hosts import HostFacts, Role
from hostler.registry.joining import join, keep_renewed
from hostler.wire.authority import CA_KEY_FILE


class GatewayMembership(msgspec.Struct, frozen=True, kw_only=True):
    """controller: `https://ADDRESS:PORT` of its control port, an address and no name (F39)."""

    gateway_id: str
    controller: str


def load_gateway_membership(paths: StatePaths) -> GatewayMembership | None:
    """Return what this folder remembers; None: no gateway here has joined another machine.

    Raises:
        StartupError: it is there and cannot be read.
    """
    path = _file(paths)
    try:
        return msgspec.json.decode(path.read_bytes(), type=GatewayMembership)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StartupError(
            f"{path}: cannot be read ({error}); remove it and join again with --controller and --token"
        ) from error


async def join_as_gateway(
    paths: StatePaths, controller: str, token: str, version: str
) -> GatewayMembership:
    """Join the controller there, as a gateway, and remember it.

    Raises:
        ConfigError: this is the folder of a controller. Else as `registry.joining.join`.
    """
    if (paths.tls_dir / CA_KEY_FILE).exists():
        raise ConfigError(
            f"state folder {paths.state_dir} is that of a controller, whose certificates are in it; "
            "give the gateway one of its own with --state-dir"
        )
    facts = HostFacts(name=socket.gethostname(), version=version, cpus=os.cpu_count() or 1)
    answer = await join(controller, token, Role.GATEWAY, facts, "", 0, paths.tls_dir)
    joined = GatewayMembership(gateway_id=answer.host_id, controller=controller)
    write_private(_file(paths), msgspec.json.encode(joined))
    return joined


@asynccontextmanager
async def renewing(joined: GatewayMembership, tls_dir: Path) -> AsyncIterator[None]:
    """Keep its certificate good while the block lasts."""
    url = joined.controller
    async with asyncio.TaskGroup() as tasks:
        work = begin(tasks, Background.GATEWAY_RENEWAL, keep_renewed(lambda: url, tls_dir))
        try:
            yield
        finally:
            work.cancel()


# Private


def _file(paths: StatePaths) -> Path:
    return paths.state_dir / "gateway.json"
