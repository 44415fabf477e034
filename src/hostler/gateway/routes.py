"""The route table: what is served, and who may ask. Default deny: no route without a declared policy."""

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from hostler.core.errors import MethodNotAllowed, NotFound, StartupError
from hostler.core.snapshot import KeyView
from hostler.wire.exchange import Exchange

Handler = Callable[[Exchange, KeyView | None], None]


class Auth(StrEnum):
    """Who may use a route."""

    OPEN = "open"  # anyone; says nothing but ok or not ok
    INFERENCE = "inference"  # a key with this scope, or admin
    METRICS = "metrics"  # a key with this scope, or admin
    ADMIN = "admin"  # an admin key
    CONTROLLER = (
        "controller"  # the controller judges; what changes something needs a key to get there
    )


class GatewayRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One address. A path that ends in `/*` stands for everything below it."""

    method: str  # "*": any. "GET": its head alone may be asked for as well (RFC 9110, 9.1)
    path: str
    handler: Handler
    auth: Auth | None = None


class RouteTable:
    """Finds routes. A path is matched as it was sent: nothing is decoded, folded or stripped (F93)."""

    def __init__(self, routes: Iterable[GatewayRoute]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[tuple[str, str], GatewayRoute] = {}
        self._below: list[tuple[str, str, GatewayRoute]] = []  # method, prefix
        for route in self.routes:
            if not isinstance(route.auth, Auth):
                raise StartupError(f"route {route.method} {route.path} declares no auth policy")
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                if route.path.endswith("/*"):
                    self._below.append((method, route.path[:-1], route))
                else:
                    self._exact[method, route.path] = route

    def find(self, method: str, path: str) -> GatewayRoute:
        """Return the route of a request.

        Raises:
            NotFound: no route has this path. MethodNotAllowed: one has, but not for this method.
        """
        route = self._exact.get((method, path)) or self._exact.get(("*", path))
        if route is not None:
            return route
        for taken, prefix, below in self._below:
            if path.startswith(prefix) and taken in (method, "*"):
                return below
        known = {m for m, p in self._exact if p == path}
        known |= {m for m, prefix, _ in self._below if path.startswith(prefix)}
        if known:
            allow = ", ".join(sorted(known))
            raise MethodNotAllowed(f"{path[:200]} takes {allow}, not {method}", allow=allow)
        raise NotFound(f"there is nothing at {path[:200]}")
