"""Calls to a running server: its data plane and its admin API, over one pool of connections."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from hostler.core.errors import (
    BadRequest,
    ConfigError,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from hostler.core.request import Body, Route
from hostler.core.snapshot import Endpoint
from hostler.engines.counting import read_count
from hostler.manager.answers import decode_answer, error_of, json_or_none
from hostler.wire.client import Pool, Response, UpstreamLost, UpstreamStatus, fetch, stream
from hostler.wire.sse import EventCutter, split_events

T = TypeVar("T")
Query = Mapping[str, str | int | float | bool | None]

CONNECT_S = 5.0
IDLE_S = 60.0  # a gateway closes a connection after 75 s
PATHS: Mapping[Route, str] = {
    Route.CHAT: "/v1/chat/completions",
    Route.COMPLETIONS: "/v1/completions",
    Route.EMBEDDINGS: "/v1/embeddings",
    Route.RERANK: "/v1/rerank",
    Route.TOKENIZE: "/tokenize",
}


class GatewayCalls:
    """One server and the key to show it. Made in the event loop that uses it."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float, ca: str = "") -> None:
        """timeout_s: for the head of an answer, and between two parts of a stream. ca: as of a `Pool`.

        Raises:
            ConfigError: the URL is not one, or `ca` no PEM file.
        """
        self._url = url
        self._endpoint = endpoint_of(url)
        self._timeout_s = timeout_s
        self._headers = [(b"content-type", b"application/json")]
        if api_key:
            self._headers.append((b"authorization", b"Bearer " + api_key.encode()))
        self._ca = ca
        try:
            self._pool = self._connections()
        except OSError as error:  # ssl's own are such, too
            raise ConfigError(f"ca {ca}: cannot be used as a PEM file ({error})") from error

    async def close(self) -> None:
        """Cut every connection; what is under way is lost."""
        await self._pool.close()

    # The data plane

    async def events(self, model: str, route: Route, body: Body) -> AsyncGenerator[bytes, None]:
        """Yield the whole SSE events of a streamed answer.

        Raises:
            HostlerError: the server's own, by its code. Unavailable: nothing answers there.
            UpstreamError: the connection ended too early.
        """
        cutter = EventCutter()
        chunks = stream(
            self._endpoint,
            "POST",
            self._path(PATHS[route]),
            headers=self._headers,
            body=encode(body),
            timeout_s=self._timeout_s,
            idle_s=self._timeout_s,
            pool=self._pool,
        )
        try:
            async with aclosing(chunks):
                async for data in chunks:
                    for event in split_events(cutter.feed(data)):
                        yield event
        except UpstreamStatus as error:
            answer = Response(status=error.status, headers=error.headers, body=error.body)
            raise refusal(answer) from error
        except UpstreamLost as error:
            raise self._lost(error) from error

    async def answer(self, model: str, route: Route, body: Body) -> Mapping[str, Any]:
        """Return a whole JSON answer. Raises as `events`."""
        path, data = PATHS[route], encode(body)
        found = await self._ask("POST", path, data, self._timeout_s, pool=self._pool)
        return decode_answer(found.body)

    async def count(self, model: str, body: Body) -> int:
        """Return the tokens of a `prompt` or `messages`. Raises as `events`."""
        found: int = read_count(await self.answer(model, Route.TOKENIZE, body))["count"]
        return found

    # The admin API

    async def get(self, path: str, kind: type[T], query: Query, *, timeout_s: float) -> T:
        """Ask, and decode the answer. None values of the query are left out. Raises as `events`."""
        path = _with(path, query)
        return self._decode(await self._ask("GET", path, b"", timeout_s, pool=self._pool), kind)

    async def send(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: msgspec.Struct | None = None,
        query: Query | None = None,
        timeout_s: float,
    ) -> T:
        """Order, and decode the answer. Raises as `events`.

        On a connection of its own: one of the pool that the server closes without a word makes its
        request go out again, and an order must not be given twice.
        """
        data = b"" if body is None else encode(body)
        path = _with(path, query or {})
        pool = self._connections()
        try:
            return self._decode(await self._ask(method, path, data, timeout_s, pool=pool), kind)
        finally:
            await pool.close()

    # Private

    def _connections(self) -> Pool:
        return Pool(self._endpoint, connect_timeout_s=CONNECT_S, idle_s=IDLE_S, ca=self._ca)

    async def _ask(
        self, method: str, path: str, body: bytes, timeout_s: float, *, pool: Pool
    ) -> Response:
        try:
            answer = await fetch(
                self._endpoint,
                method,
                self._path(path),
                headers=self._headers,
                body=body,
                timeout_s=timeout_s,
                pool=pool,
            )
        except UpstreamLost as error:
            raise self._lost(error) from error
        if answer.status >= 400:
            raise refusal(answer)
        return answer

    def _path(self, path: str) -> str:
        return self._endpoint.base_path + path

    def _decode(self, answer: Response, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UpstreamError(
                f"{self._url}: the answer is not what this version expects ({error}); "
                "is it a Hostler server of the same version?"
            ) from error

    def _lost(self, error: UpstreamLost) -> Unavailable | UpstreamTimeout | UpstreamError:
        if error.refused:
            return Unavailable(f"{self._url}: nothing answers there ({error})", retry_after_s=1)
        if error.timed_out:
            return UpstreamTimeout(f"{self._url}: {error}")
        return UpstreamError(f"{self._url}: the connection ended before the answer did")


def endpoint_of(url: str) -> Endpoint:
    """Return where a server of this URL is. A last `/v1`, as the SDKs want it, is dropped.

    Raises:
        ConfigError: it is no HTTP URL.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError
        tls = parts.scheme == "https"
        return Endpoint(
            host=parts.hostname,
            port=parts.port or (443 if tls else 80),
            tls=tls,
            base_path=parts.path.rstrip("/").removesuffix("/v1").rstrip("/"),
        )
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL like http://127.0.0.1:8100") from error


def encode(body: object) -> bytes:
    """Return it as JSON.

    Raises:
        BadRequest: a value that JSON cannot carry.
    """
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"params: {error}") from error


def refusal(answer: Response) -> Exception:
    """Return a refused request's error: the class with its code, and when to come back."""
    after = answer.header(b"retry-after") or b""
    retry_after_s = int(after) if after.isdigit() else None
    return error_of(json_or_none(answer.body), answer.status, retry_after_s=retry_after_s)


# Private


def _with(path: str, query: Query) -> str:
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
    return f"{path}?{urlencode(given)}" if given else path
