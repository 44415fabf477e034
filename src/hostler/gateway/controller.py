"""The way to the controller: /api/v1 and its like are relayed to its Unix socket, both ways streaming."""

from collections.abc import Sequence
from pathlib import Path

from hostler.core.errors import ControllerUnavailable
from hostler.core.snapshot import Endpoint
from hostler.gateway.credentials import credentials_of
from hostler.wire.client import Call, PlainSink, Pool, UpstreamLost, build_request
from hostler.wire.exchange import Exchange

CONNECT_TIMEOUT_S = (
    5.0  # where nobody listens it is refused at once; a busy machine needs longer than that
)
IDLE_S = 30.0
_REQUEST_FIELDS = frozenset(
    {b"content-type", b"accept", b"last-event-id", b"idempotency-key", b"if-none-match", b"if-match",
     b"origin", b"accept-encoding"}
)  # fmt: skip
_ANSWER_FIELDS = frozenset(
    {b"content-type", b"cache-control", b"retry-after", b"location", b"etag", b"www-authenticate",
     b"content-disposition", b"content-encoding", b"vary", b"x-frame-options", b"set-cookie",
     b"content-security-policy", b"referrer-policy", b"allow", b"x-should-retry"}
)  # fmt: skip


class ControllerLine:
    """Relays exchanges to the controller. It judges keys and scopes itself."""

    def __init__(self, admin_socket: Path) -> None:
        self._endpoint = Endpoint(socket=str(admin_socket))
        self._pool: Pool | None = None

    def relay(self, exchange: Exchange) -> None:
        """Send the request on, and the answer back as it comes."""
        if self._pool is None:
            self._pool = Pool(self._endpoint, connect_timeout_s=CONNECT_TIMEOUT_S, idle_s=IDLE_S)
        request = exchange.request
        fields = [field for field in request.headers if field[0] in _REQUEST_FIELDS]
        fields += credentials_of(request)
        fields.append((b"x-request-id", request.request_id.encode()))
        fields.append((b"x-forwarded-host", request.fields[b"host"]))
        target = f"{request.path}?{request.query}" if request.query else request.path
        message = build_request(request.method, target, "localhost", fields, request.body)
        _Passage(exchange).begin(self._pool, message)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
            self._pool = None


# Private


class _Passage(PlainSink):
    """One exchange with the controller."""

    __slots__ = ("_call", "_exchange", "_is_started")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._is_started = False
        self._call: Call | None = None

    def begin(self, pool: Pool, message: bytes) -> None:
        exchange = self._exchange
        is_order = exchange.request.method not in ("GET", "HEAD")
        self._call = call = pool.submit(message, self, once=is_order)
        exchange.on_gone, exchange.on_pause, exchange.on_resume = (
            call.cancel,
            call.pause,
            call.resume,
        )

    def on_head(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None
    ) -> None:
        kept = [field for field in headers if field[0] in _ANSWER_FIELDS]
        self._is_started = True
        self._exchange.start(status, kept, length)

    def on_data(self, data: bytes) -> None:
        self._exchange.write(data)

    def on_end(self) -> None:
        self._exchange.end()

    def on_lost(self, error: UpstreamLost) -> None:
        if self._is_started:
            self._exchange.abort()
        else:
            self._exchange.send_error(ControllerUnavailable(retry_after_s=2))
