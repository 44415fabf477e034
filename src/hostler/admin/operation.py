"""Operation: one method at one address, with the scope its key needs. The only door to a handler.

The scope is bound to the matched operation, never to the text of an address. An operation without
one cannot be made.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from hostler.admin.control import ControlPlane
from hostler.admin.messages import Query
from hostler.app.auth import KeyRing, KeyStore, Scope
from hostler.app.supervision import Gateways, Wish
from hostler.core.errors import Overloaded, StartupError
from hostler.core.snapshot import KeyView
from hostler.storage.writer import Writer

if TYPE_CHECKING:
    from hostler.admin.settings import Running
    from hostler.admin.tokens import TokenDesk


class Followers:
    """How many streams are open, and how many may be."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.open = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one stream. Raises Overloaded when every place is taken."""
        if self.open >= self._most:
            raise Overloaded(
                f"{self._most} streams of events and logs are open already; close one",
                retry_after_s=5,
            )
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


class Stream(StreamingResponse):
    """An answer that goes on until the client leaves; it holds a place as long as it is sent."""

    def __init__(
        self, parts: AsyncGenerator[bytes, None], followers: Followers, media_type: str
    ) -> None:
        super().__init__(parts, media_type=media_type, headers={"x-accel-buffering": "no"})
        self._parts = parts
        self._followers = followers

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        with self._followers.place():
            async with asyncio.TaskGroup() as tasks:
                both = [
                    tasks.create_task(self._send_all(send), name="admin.stream"),
                    tasks.create_task(_wait_gone(receive), name="admin.gone"),
                ]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                for task in both:
                    task.cancel()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._parts):  # also of a client that left between two parts
            with suppress(OSError):  # the client has gone: what an ASGI server raises then
                await self.stream_response(send)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, kw_only=True)
class Services:
    """What handlers work with."""

    control: ControlPlane
    keys: KeyStore
    writer: Writer
    keyring: Callable[[], KeyRing]
    on_keys_changed: Callable[[], None]
    clock: Callable[[], float]  # wall clock, for expiry dates
    keep_alive_s: float
    followers: Followers
    supervisor: Callable[[Wish], Awaitable[Gateways]] | None = None
    tokens: "TokenDesk | None" = None
    running: "Callable[[], Running]"
    place: Callable[[], str]  # "incarnation.version" of the snapshot as it is now; "" without one


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request to one operation, authorised; body and query have the types declared."""

    services: Services
    request: Request
    key: KeyView
    body: Any
    query: Any

    def path_value(self, name: str) -> str:
        """A part of the address, e.g. `name` of `/models/{name}`."""
        return str(self.request.path_params[name])


Handler = Callable[[Call], Awaitable[Response | msgspec.Struct]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method at one address.

    scope: what the key needs. request, response: types of the JSON bodies. streams: the media type
    that a client can ask for instead of JSON. status: of a success. takes_tickets: instead of a key.
    """

    method: str
    path: str
    scope: Scope
    summary: str
    handler: Handler
    request: type[msgspec.Struct] | None = None
    response: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] = field(default=Query)
    status: int = 200
    streams: str = ""
    takes_tickets: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scope, Scope):
            raise StartupError(f"{self.method} {self.path}: declares no scope of a key")
