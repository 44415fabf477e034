"""HeadReader: the request heads of one connection. One that comes again is recognised, not read.

A client's heads differ in their content-length alone. One whose other bytes are the same, in the same
places, can be read in no other way than the one before, so it is not read a second time.
"""

import re

from hostler.app.config import HttpLimits
from hostler.wire.exchange import Request
from hostler.wire.http1 import head_too_large, parse_head
from hostler.wire.scan import leading_number


class HeadReader:
    """Reads head after head, and keeps what it needs to recognise the last one that was accepted."""

    __slots__ = ("_after", "_before", "_fresh", "_known")

    def __init__(self) -> None:
        self._known: Request | None = None
        self._before = self._after = b""
        self._fresh = b""  # the bytes of a head just read, until it is accepted

    def read(self, buffer: bytes, limits: HttpLimits) -> tuple[Request, int] | None:
        """Return the request that the buffer begins with and where its head ends; None: it is not whole.

        Raises:
            HeadersTooLarge and its kin, and what `parse_head` raises.
        """
        known = self._known
        if known is not None and buffer.startswith(self._before):
            start = len(self._before)
            length, stop = leading_number(buffer, start)
            end = stop + len(self._after)
            if stop > start and buffer[stop:end] == self._after:
                self._fresh = b""  # of one refused meanwhile: no other may be taken for it
                return _twin(known, length, buffer[start:stop]), end
        end = buffer.find(b"\r\n\r\n") + 4
        if end == 3:
            return None
        if end > limits.target_bytes:
            too_large = head_too_large(buffer.find(b"\r\n"), end, limits)
            if too_large is not None:
                raise too_large
        raw = buffer[:end]
        request = parse_head(raw, limits.header_fields, Request)
        self._fresh = raw
        return request, end

    def accept(self, request: Request) -> None:
        """The last head that was read is good: recognise it when it comes again.

        Heads without a content-length, and those that carry an id of their own, are read each time.
        """
        raw, self._fresh = self._fresh, b""
        if not raw or request.content_length is None or b"x-request-id" in request.fields:
            return
        found = [match.span(1) for match in _LENGTH.finditer(raw)]
        if len(found) == 1:
            start, end = found[0]
            self._known, self._before, self._after = request, raw[:start], raw[end:]


# Private

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,18})(?=\r\n)")
_NAME = b"content-length"


def _twin(first: Request, length: int, digits: bytes) -> Request:
    """The same head once more, with its own length. What was judged of the first one is kept."""
    headers = first.headers
    if length != first.content_length:
        headers = [(n, digits if n == _NAME else v) for n, v in headers]
    twin = Request(first.method, first.target, first.version, headers, first)
    twin.content_length = length
    if length != first.content_length:
        twin.fields = {**first.fields, _NAME: digits}
    return twin
