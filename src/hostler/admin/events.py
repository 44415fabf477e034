"""Handler for events: a page of them, or a stream that can be taken up again where it broke."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from starlette.responses import Response

from hostler.admin.messages import EventList
from hostler.admin.operation import Call, Services, Stream
from hostler.core.errors import BadRequest
from hostler.core.worker import OperatorEvent

_PAGE = 200  # events read from the store at a time by a stream


async def events(call: Call) -> EventList | Response:
    """JSON, or a stream when asked by `Accept` or `follow`; `Last-Event-ID` beats `after`."""
    control, query = call.services.control, call.query
    accept = call.request.headers.get("accept", "")
    follows = query.follow or "text/event-stream" in accept
    after = _last_event_id(call)
    if after is None:
        after = query.after
    if after is None:
        newest = await asyncio.to_thread(control.last_event_seq)
        after = newest if follows else max(0, newest - query.limit)
    if follows:
        parts = _stream(call.services, after, query.model)
        return Stream(parts, call.services.followers, "text/event-stream")
    found = await asyncio.to_thread(control.events_after, after, query.limit, query.model)
    return EventList(events=tuple(found), next=found[-1].seq if found else after)


def sse_event(event: OperatorEvent) -> bytes:
    """Return an event as a server-sent one; its number is the id to resume from."""
    # the kind is a dotted constant of ours; a line break in it would be another field
    kind = "".join(event.kind.split()) or "event"
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (
        event.seq,
        kind.encode(),
        msgspec.json.encode(event),
    )


# Private


def _last_event_id(call: Call) -> int | None:
    text = call.request.headers.get("last-event-id")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise BadRequest("Last-Event-ID: need the number of an event", param="Last-Event-ID")
    return int(text)


async def _stream(services: Services, after: int, model: str | None) -> AsyncGenerator[bytes, None]:
    """Yield events until the client goes; a comment when there was none for `keep_alive_s`."""
    control = services.control
    loop = asyncio.get_running_loop()
    spoke_s = loop.time()
    yield b": hostler events\n\n"
    while True:
        # known before the read, so that skipping to it loses no event written meanwhile
        newest = await asyncio.to_thread(control.last_event_seq)
        found = await asyncio.to_thread(control.events_after, after, _PAGE, model)
        for event in found:
            yield sse_event(event)
            after, spoke_s = event.seq, loop.time()
        if len(found) == _PAGE:
            continue
        after = max(after, newest)  # the rest were other models' events
        silent_s = loop.time() - spoke_s
        if silent_s >= services.keep_alive_s:
            yield b": keep-alive\n\n"
            silent_s, spoke_s = 0.0, loop.time()
        await control.wait_events(after, services.keep_alive_s - silent_s)
