"""`hostler gateway run --controller URL`: a gateway on another machine than its controller."""

import asyncio

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


def belong(paths: StatePaths, url: str, token: str | None) -> GatewayMembership:
    """Return whom this gateway follows; join there when it has not yet, or another controller is named.

    Raises:
        CommandFailed: it has not joined, and no token is given; or the controller refuses.
    """
    try:
        controller = pin(url)
        known = load_gateway_membership(paths)
        if known is not None and (token is None or known.controller == controller):
            return msgspec.structs.replace(known, controller=controller)  # it may have moved
        if token is None:
            raise CommandFailed(
                f"this gateway has not joined {url}: it needs --token; "
                "`hostler token create --role gateway` there makes one",
                Exit.CONFIG,
            )
        return asyncio.run(join_as_gateway(paths, controller, token, installed_version()))
    except HostlerError as error:
        raise CommandFailed(error.message, Exit.CONFIG) from error
