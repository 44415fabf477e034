"""What stands before and around every handler: request id, key, scope, decoding, errors, headers.

The order is fixed: the operation is found, then the key is checked against that operation's scope,
and only then is anything of the request read.
"""

import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hostler.admin.body import read_body
from hostler.admin.messages import ModelAccepted
from hostler.admin.operation import Call, Operation, Services
from hostler.app.auth import require
from hostler.app.telemetry import logger, request_id
from hostler.core.change import PLACE_HEADER
from hostler.core.errors import HostlerError, InvalidAPIKey, MethodNotAllowed, NotFound, envelope
from hostler.core.snapshot import KeyView
from hostler.wire.structs import read_query

log = logger(__name__)


class Resource:
    """One address: its operations by method. An ASGI application."""

    def __init__(self, operations: Mapping[str, Operation], services: Services) -> None:
        self._operations = dict(operations)
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        operation = self._operations.get(request.method)
        if operation is None:
            raise MethodNotAllowed(
                f"{request.method[:16]} is not for this address; it takes {self.allowed}",
                allow=self.allowed,
            )
        began_s = time.monotonic()
        key = self._authorise(request, operation)
        query = read_query(scope["query_string"].decode("latin-1"), operation.query)
        body = await read_body(request, operation.request) if operation.request else None
        call = Call(services=self._services, request=request, key=key, body=body, query=query)
        answer = await operation.handler(call)
        if operation.method != "GET":
            log.info(
                "admin.order",
                method=operation.method,
                path=scope["path"],
                key_id=key.key_id,
                took_s=round(time.monotonic() - began_s, 3),
            )
        response = answer if isinstance(answer, Response) else _json(answer, operation)
        if operation.method != "GET" and (place := self._services.place()):
            response.headers[PLACE_HEADER] = place
        await response(scope, receive, send)

    @property
    def allowed(self) -> str:
        return ", ".join(self._operations)

    # Private

    def _authorise(self, request: Request, operation: Operation) -> KeyView:
        given = [value for name, value in request.scope["headers"] if name == b"authorization"]
        if len(given) > 1:
            raise InvalidAPIKey  # which of them counts is not for us to guess
        ring = self._services.keyring()
        key = ring.identify(given[0] if given else None, by_ticket=operation.takes_tickets)
        require(key, operation.scope)
        return key


class Door:
    """Gives each request an id and each error its object. An ASGI application around the router."""

    def __init__(self, router: ASGIApp) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        current = _request_id(scope)
        token = request_id.set(current)
        answer = _Answer(send, current)
        try:
            await self._router(scope, receive, answer.send)
        except HostlerError as error:
            if error.http_status >= 500:
                log.warning("admin.failed", code=error.code, message=error.message)
            await answer.fail(error)
        except Exception as error:  # boundary: one request must not end the controller
            if answer.is_gone:
                return
            log.error("admin.bug", error=error)
            await answer.fail(HostlerError())
        finally:
            request_id.reset(token)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer for an address that is not in the table."""
    if scope["type"] == "http":
        raise NotFound


# Private

_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}\Z")

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


def _request_id(scope: Scope) -> str:
    """The id the server has given, else the client's if it is harmless, else one of ours."""
    if given := scope.get("state", {}).get("request_id"):
        return str(given)
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.match(value):
            return str(value.decode("ascii"))
    return f"req_{secrets.token_hex(12)}"


def _json(answer: msgspec.Struct, operation: Operation) -> Response:
    status = operation.status
    if operation.method == "POST" and isinstance(answer, ModelAccepted) and not answer.created:
        status = 200  # the same wish was there: nothing new was accepted
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


class _Answer:
    """Adds our headers to an answer, and knows whether it is too late for an error object."""

    def __init__(self, send: Send, current: str) -> None:
        self._send = send
        self._request_id = current.encode()
        self._started = False
        self.is_gone = False  # the client left before its answer was whole

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            given: list[Any] = list(message.get("headers", ()))
            given = [pair for pair in given if pair[0] != b"x-request-id"]
            named = {name for name, _ in given}
            usual = [pair for pair in _HEADERS if pair[0] not in named]
            message = {
                **message,
                "headers": [*given, *usual, (b"x-request-id", self._request_id)],
            }
        try:
            await self._send(message)
        except OSError:  # what an ASGI server raises then
            self.is_gone = True
            raise

    async def fail(self, error: HostlerError) -> None:
        if self._started:
            raise error  # the server cuts the answer: an unclean end is the only truth left
        body = envelope(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if error.http_status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(allow := error.facts.get("allow"), str):
            headers.append((b"allow", allow.encode()))
        if error.http_status in (429, 503):
            headers.append((b"retry-after", str(error.retry_after_s or 1).encode()))
        if not error.retryable:
            headers.append((b"x-should-retry", b"false"))
        await self.send(
            {"type": "http.response.start", "status": error.http_status, "headers": headers}
        )
        await self._send({"type": "http.response.body", "body": body})
