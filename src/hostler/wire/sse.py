"""Server-sent events: cut a byte stream into whole events, read one, make one.

Source: the WHATWG HTML standard, section 9.2. Events are kept as bytes: a text is decoded by
whoever needs it, so an engine's invalid UTF-8 cannot break the cutting.
"""

import re
from collections.abc import Iterator

import msgspec

from hostler.core.errors import HostlerError, UpstreamError, envelope

EVENT_BYTES = 1024 * 1024  # the longest event that is put together; F59

# A line ends with CR LF, LF or CR; an event with an empty line. Atomic groups: CR LF is one end.
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SseEvent(msgspec.Struct, frozen=True):
    """One event: its name ("" for the default, `message`) and its data lines joined by LF."""

    event: str
    data: bytes


class EventCutter:
    """Takes bytes as they come and gives back those of whole events; keeps the partial one.

    Nothing is lost or changed: what comes out is what went in, up to the last event's empty line.
    An LF that belongs to a final CR may come with the next bytes; readers take that as it is.

    most_bytes: the longest partial event that is kept.
    """

    __slots__ = ("_most_bytes", "_pending")

    def __init__(self, most_bytes: int = EVENT_BYTES) -> None:
        self._pending = bytearray()
        self._most_bytes = most_bytes

    @property
    def has_partial(self) -> bool:
        """Is the beginning of an event waiting for its rest?"""
        return bool(self._pending)

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return those of the events they complete, or b"".

        Raises:
            UpstreamError: an event is longer than `most_bytes`.
        """
        pending = self._pending
        if not pending and data.endswith((b"\n\n", b"\r\n\r\n")):
            return data
        start = max(0, len(pending) - 3)  # an end may have begun in what is kept
        pending += data
        cut = self._last_end(start)
        if cut == 0:
            if len(pending) > self._most_bytes:
                raise UpstreamError("the engine sent an event that is too long")
            return b""
        whole = bytes(pending[:cut])
        del pending[:cut]
        if len(pending) > self._most_bytes:
            raise UpstreamError("the engine sent an event that is too long")
        return whole

    # Private

    def _last_end(self, start: int) -> int:
        pending = self._pending
        if pending.find(b"\r", start) < 0:
            return pending.rfind(b"\n\n", start) + 2 if b"\n\n" in pending[start:] else 0
        # A CR LF must not be taken apart: begin where a line begins or in the middle of one.
        while start and pending[start - 1] in b"\r\n":
            start -= 1
        cut = 0
        for end in _END.finditer(pending, start):
            cut = end.end()
        return cut


def split_events(data: bytes) -> Iterator[bytes]:
    """Give each event of what an EventCutter returned, its empty line included."""
    start = 0
    for end in _END.finditer(data):
        yield data[start : end.end()]
        start = end.end()
    if start < len(data):
        yield data[start:]


def parse_event(event: bytes) -> SseEvent | None:
    """Read one event; None when it has no data (a comment, a keep-alive)."""
    name = b""
    lines: list[bytes] = []
    for line in _LINE_END.split(event.removeprefix(_BOM)):
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    if not lines:
        return None
    return SseEvent(name.decode("utf-8", "replace"), b"\n".join(lines))


def data_event(payload: bytes) -> bytes:
    """Return an event with this data."""
    if b"\n" not in payload and b"\r" not in payload:
        return b"data: %b\n\n" % payload
    return b"".join([b"data: %b\n" % line for line in _LINE_END.split(payload)]) + b"\n"


def error_event(error: HostlerError) -> bytes:
    """Return the event that ends a broken stream: no `[DONE]` follows, and no clean end."""
    return data_event(envelope(error))
