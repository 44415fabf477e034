"""HTTP/1.1 towards engines and our own processes: the names of this side, `fetch` and `stream`.

The hot path is `Pool.submit`; `fetch` and `stream` are for agents, managers and tests.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from hostler.core.snapshot import Endpoint
from hostler.wire.http1 import Fields, build_request
from hostler.wire.identity import ClientContexts
from hostler.wire.pool import Pool, Proof
from hostler.wire.sink import Collector, PlainSink, Response, Sink, UpstreamLost, UpstreamStatus
from hostler.wire.upstream import Call

__all__ = [
    "Call", "PlainSink", "Pool", "Proof", "Response", "Sink", "UpstreamLost", "UpstreamStatus",
    "build_request", "fetch", "host_header", "stream",
]  # fmt: skip

FETCH_BYTES = 64 * 1024 * 1024  # of an answer that is collected
STREAM_BUFFER_BYTES = 256 * 1024  # of a streamed answer that waits for its reader


def host_header(endpoint: Endpoint) -> str:
    """The Host header for an endpoint."""
    if endpoint.socket or endpoint.host_id:
        return "localhost"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"


async def fetch(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    timeout_s: float,
    most_bytes: int = FETCH_BYTES,
    pool: Pool | None = None,
    tls: ClientContexts | None = None,
) -> Response:
    """Ask once and return the whole answer, whatever its status.

    path: goes behind the endpoint's prefix.
    pool: of this endpoint; without one, on a connection of its own. tls: as for a Pool.

    Raises:
        UpstreamLost: no answer, or not a whole one, or not in time (`timed_out`).
    """
    sink = Collector(asyncio.get_running_loop(), most_bytes)
    async with _one_call(endpoint, method, path, headers, body, timeout_s, sink, pool, tls) as call:
        sink.call = call
        try:
            async with asyncio.timeout(timeout_s):
                return await sink.answer
        except TimeoutError as error:
            raise UpstreamLost(
                f"{method} {path}: no whole answer in {timeout_s:g} s",
                sent_bytes=True,
                timed_out=True,
            ) from error


async def stream(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    timeout_s: float,
    idle_s: float,
    pool: Pool | None = None,
    tls: ClientContexts | None = None,
) -> AsyncGenerator[bytes, None]:
    """Ask once and give the answer's body as it comes.

    pool: of this endpoint; without one, on a connection of its own. tls: as for a Pool.
    timeout_s: until the answer's head is here. idle_s: between two parts of the body.

    Raises:
        UpstreamStatus: the answer's status is 400 or more; UpstreamLost: as for `fetch`.
    """
    sink = _Stream()
    async with _one_call(endpoint, method, path, headers, body, timeout_s, sink, pool, tls) as call:
        sink.call = call
        wait_s = timeout_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    part = await sink.next_part()
            except TimeoutError as error:
                raise UpstreamLost(
                    f"{method} {path}: nothing came for {wait_s:g} s",
                    sent_bytes=True, got_bytes=bool(sink.status), timed_out=True,
                ) from error  # fmt: skip
            wait_s = idle_s
            if part is None:
                return
            if part:
                yield part


# Private


@contextlib.asynccontextmanager
async def _one_call(
    endpoint: Endpoint,
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    timeout_s: float,
    sink: Sink,
    pool: Pool | None,
    tls: ClientContexts | None,
) -> AsyncIterator[Call]:
    fields = [*headers, (b"connection", b"close")] if pool is None else headers
    target = endpoint.prefix + path
    request = build_request(method, target, host_header(endpoint), fields, body)
    used = pool or Pool(endpoint, connect_timeout_s=timeout_s, idle_s=1.0, tls=tls)
    call = used.submit(request, sink)
    try:
        yield call
    finally:
        call.cancel()
        if used is not pool:
            await used.close()


class _Stream(PlainSink):
    """A sink that queues the parts of an answer for one reader, and pauses the server when full."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.status = 0
        self._headers: Fields = []
        self._parts: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._is_ended = False
        self._error: UpstreamLost | None = None

    async def next_part(self) -> bytes | None:
        """The next part of the body; b"" for the head alone; None at the end."""
        while not (self._parts or self._is_ended or self._error):
            await self._news.wait()
            self._news.clear()
            if self.status and self.status < 400 and not (self._parts or self._is_ended):
                return self._raise_or(b"")
        if self.status >= 400:
            return await self._fail()
        if self._parts:
            part = self._parts.popleft()
            self._waiting_bytes -= len(part)
            if self.call is not None and self._waiting_bytes < STREAM_BUFFER_BYTES // 2:
                self.call.resume()
            return part
        return self._raise_or(None)

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        self.status = status
        self._headers = headers
        self._news.set()

    def on_data(self, data: bytes) -> None:
        self._parts.append(data)
        self._waiting_bytes += len(data)
        if self.call is not None and self._waiting_bytes > STREAM_BUFFER_BYTES:
            self.call.pause()
        self._news.set()

    def on_end(self) -> None:
        self._is_ended = True
        self._news.set()

    def on_lost(self, error: UpstreamLost) -> None:
        self._error = error
        self._news.set()

    def _raise_or(self, value: bytes | None) -> bytes | None:
        if self._error is not None:
            raise self._error
        return value

    async def _fail(self) -> bytes | None:
        """Read the error's body to its end, as far as the buffer allows, and raise it."""
        while not (self._is_ended or self._error or self._waiting_bytes > STREAM_BUFFER_BYTES):
            self._news.clear()
            await self._news.wait()
        raise UpstreamStatus(self.status, b"".join(self._parts), self._headers)
