"""Front: what every request passes: its route, its key, and on to who answers it."""

from hostler.app.auth import Scope, require
from hostler.core.errors import HostlerError, InvalidAPIKey, UnsupportedMediaType
from hostler.core.request import Route
from hostler.core.snapshot import KeyView
from hostler.gateway.admission import Admission, Admitted
from hostler.gateway.answers import own_error
from hostler.gateway.credentials import credentials_of
from hostler.gateway.detours import Detours
from hostler.gateway.metrics import GatewayMetrics
from hostler.gateway.relays import Relays
from hostler.gateway.routes import Auth, Handler, RouteTable
from hostler.wire.exchange import Exchange
from hostler.wire.http1 import Head


class Front:
    """The door of the data plane. `judge_head` and `handle` belong to HttpServers."""

    def __init__(
        self, admission: Admission, metrics: GatewayMetrics, relays: Relays, detours: Detours
    ) -> None:
        self.table = RouteTable(())  # set once everything it leads to is there
        self._admission = admission
        self._metrics = metrics
        self._relays = relays
        self._detours = detours
        self._head: Head | None = None  # judged last, and what was found of it
        self._admitted: Admitted | None = None

    def judge_head(self, head: Head) -> HostlerError | None:
        """Say why a request is refused before its body is read: route, key, scope, media type."""
        judged = head.judged
        if type(judged) is Admitted and self._admission.still_knows(judged):
            self._head, self._admitted = head, judged
            return None
        try:
            self._admitted = self._admit(head)
        except HostlerError as error:
            self._metrics.refused(error.code)
            return error
        self._head = head
        return None

    def handle(self, exchange: Exchange) -> None:
        """Serve a whole request. Mostly its head was judged just now."""
        head, admitted = self._head, self._admitted
        self._head = self._admitted = None
        try:
            if admitted is None or head is not exchange.request:
                admitted = self._admit(exchange.request)
            admitted.handler(exchange, admitted.key)
        except HostlerError as error:
            self._metrics.refused(error.code)
            exchange.send(*own_error(error))

    def work(self, kind: Route) -> Handler:
        """Return the handler of an inference route."""

        def handler(exchange: Exchange, key: KeyView | None) -> None:
            job = self._admission.job(exchange.request, known(key), kind)
            if job.model.routing.split:
                job = self._detours.split(job)
            self._relays.begin(exchange, job)

        return handler

    # Private

    def _admit(self, head: Head) -> Admitted:
        """Find the route and judge who asks."""
        route = self.table.find(head.method, head.path)
        key: KeyView | None = None
        if route.auth is Auth.INFERENCE:
            key = self._admission.identify(head)
            require(key, Scope.INFERENCE)
            if head.method == "POST":
                check_media_type(head)
            head.judged = admitted = self._admission.admitted(route, key)
            return admitted
        if route.auth in _SCOPES:
            key = self._admission.identify(head)
            require(key, _SCOPES[route.auth])
        elif (
            route.auth is Auth.CONTROLLER
            and head.method not in _READING
            and not credentials_of(head)
        ):
            raise InvalidAPIKey
        return self._admission.admitted(route, key)


def check_media_type(head: Head) -> None:
    """Refuse bodies that say they are something else than JSON (browsers send forms unasked).

    Raises:
        UnsupportedMediaType
    """
    kind = head.fields.get(b"content-type")
    if kind is not None and kind[:16].lower() != b"application/json":
        raise UnsupportedMediaType("the body must be JSON: send `content-type: application/json`")


def known(key: KeyView | None) -> KeyView:
    """The key of a route that needs one: it has been found."""
    if key is None:
        raise InvalidAPIKey
    return key


# Private

_SCOPES = {Auth.METRICS: Scope.METRICS, Auth.ADMIN: Scope.ADMIN}
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
