"""How a gateway on another machine than its controller joins, and what it remembers of it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import msgspec

from hostler.app.background import Background, begin
from hostler.app.paths import StatePaths
from hostler.app.private_file import write_private
from hostler.core.errors import ConfigError, ControllerUnavailable, StartupError
from hostler.core.hosts import HostFacts, Role
from hostler.registry.joining import join, keep_renewed
from hostler.wire.authority import CA_KEY_FILE


class GatewayMembership(msgspec.Struct, frozen=True, kw_only=True):
    """controllers: `https://ADDRESS:PORT` of control ports, addresses and no names (F39); one leads."""

    gateway_id: str
    controllers: tuple[str, ...]


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
    paths: StatePaths, controllers: tuple[str, ...], token: str, version: str
) -> GatewayMembership:
    """Join the first of these controllers that lets it in, as a gateway, and remember them.

    Raises:
        ConfigError: this is the folder of a controller. Else as `registry.joining.join`.
    """
    if (paths.tls_dir / CA_KEY_FILE).exists():
        raise ConfigError(
            f"state folder {paths.state_dir} is that of a controller, whose certificates are in it; "
            "give the gateway one of its own with --state-dir"
        )
    facts = HostFacts(name=socket.gethostname(), version=version, cpus=os.cpu_count() or 1)
    for number, url in enumerate(controllers, 1):
        try:
            answer = await join(url, token, Role.GATEWAY, facts, "", 0, paths.tls_dir)
            break
        except ControllerUnavailable:  # it may be the one that stands by
            if number == len(controllers):
                raise
    joined = GatewayMembership(gateway_id=answer.host_id, controllers=controllers)
    write_private(_file(paths), msgspec.json.encode(joined))
    return joined


def forget(paths: StatePaths) -> None:
    """It belongs nowhere any more."""
    _file(paths).unlink(missing_ok=True)


@asynccontextmanager
async def renewing(joined: GatewayMembership, tls_dir: Path) -> AsyncIterator[None]:
    """Keep its certificate good while the block lasts. Each try is at the next controller."""
    urls = cycle(joined.controllers)
    async with asyncio.TaskGroup() as tasks:
        work = begin(tasks, Background.GATEWAY_RENEWAL, keep_renewed(lambda: next(urls), tls_dir))
        try:
            yield
        finally:
            work.cancel()


# Private


def _file(paths: StatePaths) -> Path:
    return paths.state_dir / "gateway.json"
