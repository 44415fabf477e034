"""AsgiBridge: an ASGI application behind the same guarded server as the data plane.

So the admin API needs no second HTTP server, and no second set of limits. Lifespan and WebSocket
are not here: components have their own life cycle, and nothing of ours speaks WebSocket.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from hostler.core.errors import HostlerError
from hostler.wire.http1 import Fields
from hostler.wire.server import Exchange

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]  # the ASGI specification's own type
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

YIELD_EVERY = 64  # parts of an answer; a fast application must let others run (F49)
_OURS = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"date", b"x-request-id")
)


class ClientGone(OSError):
    """The client left; what ASGI asks `send` to raise."""


class AsgiBridge:
    """A handler for HttpServer that runs an ASGI application for each exchange.

    tasks: a running TaskGroup of the owner; its end ends the requests.
    """

    def __init__(self, app: App, tasks: asyncio.TaskGroup) -> None:
        self._app = app
        self._tasks = tasks

    def __call__(self, exchange: Exchange) -> None:
        self._tasks.create_task(self._run(exchange), name="wire.asgi")

    # Private

    async def _run(self, exchange: Exchange) -> None:
        session = _Session(exchange)
        try:
            await self._app(_scope(exchange), session.receive, session.send)
        except Exception:  # boundary: one request
            if session.is_gone:  # frameworks put ClientGone into an exception of their own
                return
            log.exception("asgi.failed request_id=%s", exchange.request.request_id)
        except asyncio.CancelledError:
            exchange.abort()
            raise
        if not exchange.is_over:  # failed, or returned without a whole answer
            exchange.send_error(HostlerError())


class _Session:
    """The two ends that an application holds: receive and send."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._body: bytes | None = exchange.request.body
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._start: tuple[int, Fields, int | None] | None = None
        self._parts = 0
        self.is_gone = False
        exchange.on_gone = self._on_gone
        exchange.on_pause = self._writable.clear
        exchange.on_resume = self._writable.set

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if self.is_gone:
            raise ClientGone("the client has gone")
        if message["type"] == "http.response.start":
            self._start = _start_of(message)
            return
        if message["type"] != "http.response.body":
            raise RuntimeError(f"not an answer's message: {message['type']}")
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._start is not None:
            (status, headers, length), self._start = self._start, None
            if not more and exchange.request.method != "HEAD":
                exchange.send(status, body, headers)
                self._gone.set()
                return
            exchange.start(status, headers, length)
        elif not exchange.is_started:
            raise RuntimeError("http.response.body before http.response.start")
        exchange.write(body)
        if not more:
            exchange.end()
            self._gone.set()  # ASGI: after the answer, `receive` says disconnect
            return
        await self._breathe()

    # Private

    async def _breathe(self) -> None:
        """Wait while the client reads too slowly; let others run now and then."""
        self._parts += 1
        if not self._writable.is_set():
            await self._writable.wait()
        elif self._parts % YIELD_EVERY == 0:
            await asyncio.sleep(0)

    def _on_gone(self) -> None:
        self.is_gone = True
        self._gone.set()
        self._writable.set()


def _scope(exchange: Exchange) -> MutableMapping[str, Any]:
    request = exchange.request
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1" if request.version else "1.0",
        "method": request.method,
        "scheme": "http",
        "path": unquote(request.path),
        "raw_path": request.path.encode(),
        "query_string": request.query.encode(),
        "root_path": "",
        "headers": request.headers,
        "client": (exchange.client, 0),
        "server": None,
        "state": {"request_id": request.request_id},
    }


def _start_of(message: Message) -> tuple[int, Fields, int | None]:
    """Status, headers without those that are the server's, and the declared length."""
    length: int | None = None
    headers: Fields = []
    for name, value in message.get("headers", ()):
        key = bytes(name).lower()
        if key == b"content-length":
            length = int(value)
        if key not in _OURS:
            headers.append((key, bytes(value)))
    return message["status"], headers, length
