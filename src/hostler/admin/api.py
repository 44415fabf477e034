"""/api/v1: the table of operations as an ASGI application, with the console beside it.

Not here: HTTP framing and its limits (wire), what the orders do (manager).
"""

import time
from collections.abc import Awaitable, Callable, Sequence

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from hostler.admin.console import console_routes
from hostler.admin.control import ControlPlane
from hostler.admin.door import Door, Resource, not_found
from hostler.admin.operation import Followers, Operation, Services
from hostler.admin.operations import OPERATIONS as OPERATIONS
from hostler.admin.settings import Running, default_settings
from hostler.admin.tokens import TokenDesk
from hostler.app.auth import KeyRing, KeyStore
from hostler.app.supervision import Gateways, Wish
from hostler.core.errors import StartupError
from hostler.storage.writer import Writer

FOLLOWERS = 64  # streams of events and logs open at once


def admin_app(
    control: ControlPlane,
    store: KeyStore,
    keyring: Callable[[], KeyRing],
    *,
    on_keys_changed: Callable[[], None],
    writer: Writer | None = None,
    clock: Callable[[], float] = time.time,
    keep_alive_s: float = 15.0,
    followers: int = FOLLOWERS,
    operations: Sequence[Operation] = OPERATIONS,
    supervisor: Callable[[Wish], Awaitable[Gateways]] | None = None,
    desk: TokenDesk | None = None,
    running: Callable[[], Running] | None = None,
    place: Callable[[], str] = str,
) -> ASGIApp:
    """Return the admin API as an ASGI application.

    keyring: gives the keys of this moment. on_keys_changed: called in the event loop after a key
        was made or revoked; the caller builds a new ring and publishes a snapshot.
    writer: takes what is written to the store; one of its own when left out.
    desk: keeps join tokens. supervisor: asks who starts the gateways; None when nobody does.
    running: the settings as they are in use; the defaults when left out.
    place: "incarnation.version" of the snapshot as it is now, told with each order that was taken.
    keep_alive_s: silence of an event stream after which a comment is sent.

    Raises:
        StartupError: an operation is there twice.
    """
    services = Services(
        control=control,
        keys=store,
        writer=writer or Writer("keys"),
        keyring=keyring,
        on_keys_changed=on_keys_changed,
        clock=clock,
        keep_alive_s=keep_alive_s,
        followers=Followers(followers),
        supervisor=supervisor,
        tokens=desk,
        running=running or default_settings,
        place=place,
    )
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        methods = by_path.setdefault(operation.path, {})
        if operation.method in methods:
            raise StartupError(f"{operation.method} {operation.path}: declared twice")
        methods[operation.method] = operation
    routes = [
        Route(path, endpoint=Resource(methods, services)) for path, methods in by_path.items()
    ]
    routes += console_routes()
    return Door(Router(routes, redirect_slashes=False, default=not_found))
