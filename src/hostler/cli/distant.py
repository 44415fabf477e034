"""`hostler gateway run --controller URL`: a gateway on another machine than its controller."""

import asyncio
from collections.abc import Sequence

import msgspec

from hostler.app.config import Config, default_gateway_dir
from hostler.app.paths import StatePaths
from hostler.app.version import installed_version
from hostler.cli.exits import CommandFailed, Exit
from hostler.core.errors import HostlerError
from hostler.gateway.joining import GatewayMembership, join_as_gateway, load_gateway_membership
from hostler.manager.membership import pin


def distant_paths(settings: Config) -> StatePaths:
    """The state folder of such a gateway: its own, unless another is named."""
    return StatePaths(settings.state_dir or default_gateway_dir())


def belong(paths: StatePaths, urls: Sequence[str], token: str | None) -> GatewayMembership:
    """Return whom this gateway follows; join there when it has not yet, or another controller is named.

    Raises:
        CommandFailed: it has not joined, and no token is given; or the controller refuses.
    """
    try:
        controllers = tuple(pin(url) for url in urls)
        known = load_gateway_membership(paths)
        if known is not None and (token is None or set(known.controllers) & set(controllers)):
            return msgspec.structs.replace(known, controllers=controllers)  # they may have moved
        if token is None:
            raise CommandFailed(
                f"this gateway has not joined {urls[0]}: it needs --token; "
                "`hostler token create --role gateway` there makes one",
                Exit.CONFIG,
            )
        return asyncio.run(join_as_gateway(paths, controllers, token, installed_version()))
    except HostlerError as error:
        raise CommandFailed(error.message, Exit.CONFIG) from error
