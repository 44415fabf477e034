"""Sight: what operators may ask a gateway about its requests, under way and ended.

Each gateway process knows its own; one that is asked asks its siblings too, over their sockets.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from hostler.core.errors import Draining, HostlerError, NotFound
from hostler.core.snapshot import Endpoint, KeyView
from hostler.core.timeline import RequestList, RequestQuery, RequestShown, RequestView
from hostler.gateway.answers import JSON_FIELD, own_error
from hostler.gateway.credentials import credentials_of
from hostler.gateway.relays import Relays
from hostler.gateway.timeline import Timeline
from hostler.wire.client import UpstreamLost, fetch
from hostler.wire.exchange import Exchange, Request
from hostler.wire.structs import read_query

REQUESTS_PATH = "/api/v1/requests"
SIBLING_S = 1.0  # for what another gateway says

Q = TypeVar("Q")
Siblings = Callable[[], Sequence[Path]]


class Sight:
    """The requests of one gateway, and of its siblings."""

    def __init__(
        self, relays: Relays, siblings: Siblings, wall: Callable[[], float] = time.time
    ) -> None:
        """siblings: the sockets of the other gateways of this server."""
        self._relays = relays
        self._siblings = siblings
        self._wall = wall
        self.tasks: asyncio.TaskGroup | None = None  # where answers are put together

    def list_requests(self, exchange: Exchange, key: KeyView | None) -> None:
        """Answer `GET /api/v1/requests`."""
        self._answer_later(exchange, self.requests(exchange.request))

    def show_request(self, exchange: Exchange, key: KeyView | None) -> None:
        """Answer `GET /api/v1/requests/{id}`."""
        self._answer_later(exchange, self.request(exchange.request))

    async def requests(self, request: Request) -> RequestList:
        """The requests that the query asks for.

        Raises:
            BadRequest: it asks for something that is not there.
        """
        query = read_query(request.query, RequestQuery)
        ours = RequestList(requests=tuple(self._matching(query)), at_s=round(self._wall(), 6))
        if query.here:
            return ours
        asked = {**_given(query), "here": "true"}
        found = await self._ask_siblings(
            request, f"{REQUESTS_PATH}?{urlencode(asked)}", RequestList
        )
        told = [one for one in found if one is not None]
        return merged([ours, *told], query.limit, silent=len(found) - len(told))

    async def request(self, request: Request) -> RequestView:
        """The newest request of this id.

        Raises:
            NotFound: nobody knows it (any more). BadRequest: as `requests`.
        """
        here = read_query(request.query, RequestShown).here
        request_id = request.path.removeprefix(f"{REQUESTS_PATH}/")
        for timeline in self._newest_first():
            if timeline.request_id == request_id:
                return self._view(timeline)
        if not here:
            path = f"{REQUESTS_PATH}/{quote(request_id, safe='')}?here=true"
            for found in await self._ask_siblings(request, path, RequestView):
                if found is not None:
                    return found
        raise NotFound(
            f"no request {request_id[:64]!r} is known here; the last "
            f"{self._relays.config.timeline_requests} of each gateway are (gateway.timeline_requests)"
        )

    # Private

    def _answer_later(
        self, exchange: Exchange, answer: Coroutine[None, None, msgspec.Struct]
    ) -> None:
        async def send() -> None:
            try:
                body = msgspec.json.encode(await answer)
                exchange.send(200, body, [JSON_FIELD, (b"cache-control", b"no-store")])
            except HostlerError as error:
                exchange.send(*own_error(error))

        if self.tasks is None:
            answer.close()
            raise Draining
        self.tasks.create_task(send(), name="requests")

    def _newest_first(self) -> Iterator[Timeline]:
        """Those under way, then those that ended."""
        for relay in reversed(tuple(self._relays.under_way)):
            if relay.is_started and relay.attempt is not None:
                relay.attempt.catch_up()
                relay.timeline.events = relay.attempt.events  # so far; told for good at its end
            yield relay.timeline
        yield from reversed(tuple(self._relays.ring))

    def _ended_between(self, after_s: float | None, before_s: float | None) -> Iterator[Timeline]:
        """Those under way, unless they should have ended, and those that ended in between. Unix time."""
        first_s = -inf if after_s is None else self._monotonic(after_s)
        last_s = inf if before_s is None else self._monotonic(before_s)
        for timeline in self._newest_first():
            if timeline.took_s is None:
                if before_s is None:
                    yield timeline
                continue
            ended_s = timeline.began_s + timeline.took_s
            if ended_s <= first_s:
                return  # and so did all that follow
            if ended_s < last_s:
                yield timeline

    def _matching(self, query: RequestQuery) -> Iterator[RequestView]:
        left = query.limit
        began_s = None if query.since is None else self._monotonic(query.since)
        for timeline in self._ended_between(query.ended_after, query.ended_before):
            if (
                (query.model is None or query.model in (timeline.model, timeline.asked))
                and query.key in (None, timeline.key_id)
                and query.outcome in (None, timeline.outcome)
                and (began_s is None or timeline.began_s >= began_s)
            ):
                yield self._view(timeline)
                left -= 1
                if not left:
                    return

    def _view(self, timeline: Timeline) -> RequestView:
        return timeline.view(self._relays.clock(), self._wall())

    def _monotonic(self, at_s: float) -> float:
        return self._relays.clock() - (self._wall() - at_s)

    async def _ask_siblings(self, request: Request, path: str, kind: type[Q]) -> list[Q | None]:
        """What each sibling says; None for one that says nothing of use."""
        headers = credentials_of(request)

        async def ask(socket: Path) -> Q | None:
            try:
                answer = await fetch(
                    Endpoint(socket=str(socket)), "GET", path, headers=headers, timeout_s=SIBLING_S
                )
                return msgspec.json.decode(answer.body, type=kind) if answer.status == 200 else None
            except (UpstreamLost, TimeoutError, OSError, msgspec.MsgspecError):
                return None

        return list(await asyncio.gather(*(ask(socket) for socket in self._siblings())))


def merged(lists: Iterable[RequestList], limit: int, silent: int = 0) -> RequestList:
    """Several gateways' lists as one: those under way first, then the newest.

    When there are more than `limit`, those go that ended first: they are on the page that follows.
    """
    parts = tuple(lists)
    every = [one for part in parts for one in part.requests]
    if len(every) > limit:
        every.sort(key=lambda one: (one.outcome is not None, -(one.at_s + one.took_s)))
        del every[limit:]
    every.sort(key=lambda one: (one.outcome is not None, -one.at_s))
    told_s = parts[0].at_s if parts else 0.0
    return RequestList(requests=tuple(every), silent=silent, at_s=told_s)


# Private


def _given(query: RequestQuery) -> dict[str, str]:
    """The fields of a query that say something."""
    return {
        name: str(value)
        for name, value in msgspec.to_builtins(query).items()
        if value is not None and value is not False
    }
