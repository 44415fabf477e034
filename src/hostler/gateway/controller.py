"""The way to the controller: /api/v1 and its like are relayed to its Unix socket, both ways streaming.

The answer to an order waits until this gateway knows what was ordered: who has been given a key can use it.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hostler.core.change import PLACE_HEADER, Change
from hostler.core.errors import ControllerUnavailable
from hostler.core.snapshot import Endpoint
from hostler.gateway.credentials import credentials_of
from hostler.wire.client import Call, PlainSink, Pool, UpstreamLost, build_request
from hostler.wire.exchange import Exchange

CONNECT_TIMEOUT_S = (
    5.0  # where nobody listens it is refused at once; a busy machine needs longer than that
)
IDLE_S = 30.0
KNOWN_S = 1.0  # how long an answer waits at most until what was ordered is known here
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
        self._place = (0, 0)  # incarnation and version of the snapshot here
        self._waiting: dict[_Passage, tuple[int, int]] = {}  # for which place

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
        _Passage(exchange, self).begin(self._pool, message)

    def take(self, change: Change) -> None:
        """A newer snapshot is here: answers that waited for it go out."""
        self._place = change.incarnation, change.version
        for passage in [one for one, place in self._waiting.items() if place <= self._place]:
            self.release(passage)

    async def close(self) -> None:
        for passage in tuple(self._waiting):
            self.release(passage)
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    # For passages

    def hold(self, passage: "_Passage", place: tuple[int, int]) -> bool:
        """Release it when this place of the snapshot is here. False: it is."""
        if place <= self._place:
            return False
        self._waiting[passage] = place
        asyncio.get_running_loop().call_later(KNOWN_S, self.release, passage)
        return True

    def release(self, passage: "_Passage") -> None:
        if self._waiting.pop(passage, None) is not None:
            passage.release()


# Private


class _Passage(PlainSink):
    """One exchange with the controller."""

    __slots__ = ("_call", "_exchange", "_held", "_is_started", "_line")

    def __init__(self, exchange: Exchange, line: ControllerLine) -> None:
        self._exchange = exchange
        self._line = line
        self._is_started = False
        self._call: Call | None = None
        self._held: list[Callable[[], None]] | None = None  # what is to be sent on, in order

    def begin(self, pool: Pool, message: bytes) -> None:
        exchange = self._exchange
        is_order = exchange.request.method not in ("GET", "HEAD")
        self._call = call = pool.submit(message, self, once=is_order)
        exchange.on_gone, exchange.on_pause, exchange.on_resume = (
            call.cancel,
            call.pause,
            call.resume,
        )

    def release(self) -> None:
        """Send on what was held."""
        held, self._held = self._held or (), None
        for send in held:
            send()

    def on_head(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None
    ) -> None:
        kept = [field for field in headers if field[0] in _ANSWER_FIELDS]
        self._is_started = True
        place = _place_of(headers)
        if place is not None and self._line.hold(self, place):
            self._held = []
        self._send(partial(self._exchange.start, status, kept, length))

    def on_data(self, data: bytes) -> None:
        self._send(partial(self._exchange.write, data))

    def on_end(self) -> None:
        self._send(self._exchange.end)

    def on_lost(self, error: UpstreamLost) -> None:
        if self._is_started:
            self._send(self._exchange.abort)
        else:
            self._exchange.send_error(ControllerUnavailable(retry_after_s=2))

    def _send(self, send: Callable[[], None]) -> None:
        if self._held is None:
            send()
        else:
            self._held.append(send)


def _place_of(headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, int] | None:
    for name, value in headers:
        if name == _PLACE:
            incarnation, _, version = value.partition(b".")
            return int(incarnation), int(version)
    return None


_PLACE = PLACE_HEADER.encode()
