"""An answer of an engine as bytes: its head, how its body is framed, its chunks. Sans-I/O.

Heads are read by httptools (llhttp). An engine's heads are all but equal, so one that differs from the
last one in its content-length alone is recognised and not read again.
"""

import re
from enum import IntEnum
from typing import Final

import httptools

from hostler.wire.http1 import Fields
from hostler.wire.scan import leading_hex

HEAD_BYTES = 64 * 1024  # of an answer's head
CHUNK_BYTES = 1 << 40  # of one chunk: no engine sends more


class BadReply(Exception):
    """The answer is not framed as it should be."""


class Framing(IntEnum):
    """Where a body ends."""

    NONE = 0  # there is none
    LENGTH = 1  # after so many bytes
    CHUNKED = 2  # after the chunk of size 0
    CLOSE = 3  # with the connection


# The same as plain names: see phase.py.
NONE: Final = Framing.NONE
LENGTH: Final = Framing.LENGTH
CHUNKED: Final = Framing.CHUNKED
CLOSE: Final = Framing.CLOSE


class ReplyHead:
    """The head of an answer. headers: lower-case names, without content-length.
    length: what content-length says, has_length: if it does (a HEAD is told that of the body it would have).

    keep: may the connection be used again? after: its last bytes, from the end of the content-length
    on; before: those up to it, or all of it.
    """

    __slots__ = ("after", "before", "framing", "has_length", "headers", "keep", "length", "status")

    def __init__(
        self, raw: bytes, status: int, headers: Fields, framing: Framing, keep: bool
    ) -> None:
        self.status = status
        self.headers = [field for field in headers if field[0] != _LENGTH_NAME]
        self.framing = framing
        lengths = {value.strip() for name, value in headers if name == _LENGTH_NAME}
        if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
            raise BadReply("the answer's content-length is not a number")
        self.has_length = bool(lengths)
        self.length = int(lengths.pop()) if lengths else 0
        self.keep = keep
        self.before, self.after = raw, b""
        if framing is LENGTH:
            found = _LENGTH.search(raw)
            if found is not None:
                self.before, self.after = raw[: found.start(1)], raw[found.end(1) :]


def read_head(raw: bytes, *, is_for_head: bool) -> ReplyHead:
    """Read a whole head, its empty line included. is_for_head: the request was a HEAD.

    Raises:
        BadReply
    """
    collector = _Collector()
    collector.parser = parser = httptools.HttpResponseParser(collector)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise BadReply(f"the answer is not framed as it should be: {error}") from None
    if not collector.is_whole:
        raise BadReply("the answer's head is not one")
    status = parser.get_status_code()
    headers = collector.headers
    keep = collector.keep
    names = [name for name, _ in headers]
    coded = b"transfer-encoding" in names
    if is_for_head or status < 200 or status in (204, 304):
        return ReplyHead(raw, status, headers, NONE, keep)
    if coded:
        coding = next(value for name, value in headers if name == b"transfer-encoding")
        if coding.lower() != b"chunked" or names.count(b"transfer-encoding") > 1:
            raise BadReply("the answer has a transfer-encoding that is not `chunked`")
        return ReplyHead(raw, status, headers, CHUNKED, keep)
    if _LENGTH_NAME not in names:
        return ReplyHead(raw, status, headers, CLOSE, keep=False)
    return ReplyHead(raw, status, headers, LENGTH, keep)


class ChunkReader:
    """Takes a chunked body apart. Extensions and trailer fields are passed over.

    is_complete: the last chunk and its end were here; `rest` is what follows.
    """

    __slots__ = ("_left", "_pending", "_state", "is_complete", "rest")

    def __init__(self) -> None:
        self._left = 0
        self._pending = b""
        self._state = _SIZE
        self.is_complete = False
        self.rest = b""

    @property
    def is_between(self) -> bool:
        """Does a chunk begin with the next byte?"""
        return self._state == _SIZE and not self._pending

    @property
    def chunk_left(self) -> int:
        """How many bytes it is to the end of the chunk that we are in; 0: that is not known."""
        return self._left + 2 if self._state == _DATA else 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return those of the body among them.

        Raises:
            BadReply
        """
        data = self._pending + data if self._pending else data
        self._pending = b""
        pieces: list[bytes] = []
        at, length = 0, len(data)
        while True:
            if self._state == _DATA:
                end = min(at + self._left, length)
                pieces.append(data[at:end])
                self._left -= end - at
                at = end
                if self._left:
                    break
                self._state = _DATA_END
            if self._state == _SIZE:
                size, end = leading_hex(data, at)
                if end > at and end + 1 < length and data[end] == _CR and data[end + 1] == _LF:
                    at = end + 2
                else:
                    line = _CHUNK_LINE.match(data, at)
                    if line is None:
                        self._keep(data[at:], _PARTIAL_SIZE)
                        break
                    size, at = int(line[1], 16), line.end()
                    if size > CHUNK_BYTES:
                        raise BadReply("a chunk of the answer is too long")
                self._left = size
                self._state = _DATA if size else _TRAILER
                continue
            if at + 1 < length and data[at] == _CR and data[at + 1] == _LF:
                at += 2
                if self._state == _DATA_END:
                    self._state = _SIZE
                    continue
                self.is_complete = True
                self.rest = data[at:]
                break
            end = data.find(b"\n", at)
            if end < 0:
                self._keep(data[at:], _PARTIAL_LINE)
                break
            line_bytes = data[at:end].rstrip(b"\r")
            at = end + 1
            if self._state == _DATA_END:
                if line_bytes:
                    raise BadReply("a chunk of the answer is longer than it says")
                self._state = _SIZE
            elif not line_bytes:
                self.is_complete = True
                self.rest = data[at:]
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Private

    def _keep(self, part: bytes, beginning: re.Pattern[bytes]) -> None:
        """Wait for the rest of a line."""
        if len(part) > _LINE_BYTES or beginning.match(part) is None:
            raise BadReply("a chunk of the answer has no size")
        if self._state == _DATA_END and part not in (b"", b"\r"):
            raise BadReply("a chunk of the answer is longer than it says")
        self._pending = part


def whole_chunks(data: bytes) -> tuple[int, int]:
    """Return how many whole chunks, each ending with an SSE event's end, come first, and where they end.

    For bytes at whose beginning a chunk begins. The chunk of size 0 is none.
    """
    start, count, length = 0, 0, len(data)
    while start + 4 < length:
        if data[start] == _ZERO:  # the last chunk, or one whose size begins with 0
            break
        size, at = leading_hex(data, start)
        end = at + size + 4
        if at == start or end > length or size < 2:
            break
        if data[at] != _CR or data[at + 1] != _LF or data[end - 1] != _LF:
            break
        if data[end - 2] != _CR or data[end - 3] != _LF or data[end - 4] != _LF:
            break
        start = end
        count += 1
    return count, start


# Private

_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILER: Final = 3
_LENGTH_NAME = b"content-length"
_LINE_BYTES = 4096  # of a chunk's size line or a trailer field
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]+)(?=[ \t]*\r\n)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?\r?\n")
_ZERO: Final = 0x30
_CR: Final = 0x0D
_LF: Final = 0x0A
_PARTIAL_SIZE = re.compile(rb"\Z|[0-9A-Fa-f]{1,12}[ \t]*(?:;[^\r\n]*)?\r?\Z")
_PARTIAL_LINE = re.compile(rb"[^\n]*\Z")


class _Collector:
    """What httptools calls."""

    def __init__(self) -> None:
        self.headers: Fields = []
        self.is_whole = False
        self.keep = False
        self.parser: httptools.HttpResponseParser | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_whole = True
        if self.parser is not None:  # asked now: a message that has ended is not remembered
            self.keep = self.parser.should_keep_alive()
