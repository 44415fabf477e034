"""HTTP/1.1 as bytes: a strict reading of request heads and chunked bodies; the writing of heads.

Sans-I/O: nothing here knows a socket or a clock. Strict means that every message has one reading
only; what another program could read in a second way is refused (F88). Answers of engines are not
read here: those are httptools' work (client.py).
"""

import re
from collections.abc import Sequence
from typing import TypeVar

from hostler.app.config import HttpLimits
from hostler.core.errors import (
    BadRequest,
    HeadersTooLarge,
    HostlerError,
    InvalidFraming,
    InvalidHost,
    MethodNotAllowed,
    RequestTooLarge,
    UnsupportedMediaType,
    URITooLong,
)

Fields = list[tuple[bytes, bytes]]

REASONS = {
    200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content", 301: b"Moved Permanently",
    302: b"Found", 303: b"See Other", 304: b"Not Modified", 307: b"Temporary Redirect",
    400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict", 410: b"Gone",
    413: b"Content Too Large", 414: b"URI Too Long", 415: b"Unsupported Media Type",
    421: b"Misdirected Request", 422: b"Unprocessable Content", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
    504: b"Gateway Timeout", 507: b"Insufficient Storage",
}  # fmt: skip
STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"Status"))
    for status in range(100, 600)
}


class Head:
    """The head of a request, checked.

    method, path, query: as sent; the path is not decoded, and holds no encoded slash, dot or
        control.
    headers: lower-case names with their values, in the order sent.
    content_length: None when the body is chunked.
    judged: what who judged it found, for the next head on this connection that is equal.
    """

    __slots__ = (
        "content_length",
        "expects_continue",
        "fields",
        "headers",
        "judged",
        "keep_alive",
        "method",
        "path",
        "query",
        "target",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        version: int,
        headers: Fields,
        same: "Head | None" = None,
    ) -> None:
        """same: a head that is equal but for its content-length; what was read of it is taken over."""
        self.method = method
        self.target = target
        self.version = version  # 0 or 1: HTTP/1.0 or HTTP/1.1
        self.headers = headers
        self.content_length: int | None = 0
        self.fields: dict[bytes, bytes] = {}
        self.path = self.query = ""
        self.expects_continue = False
        self.keep_alive = version == 1
        self.judged: object = None
        if same is None:
            self.fields = dict(headers)
            self.path, _, self.query = target.decode("ascii").partition("?")
            return
        self.fields = same.fields
        self.path = same.path
        self.query = same.query
        self.expects_continue = same.expects_continue
        self.keep_alive = same.keep_alive
        self.judged = same.judged

    def header(self, name: bytes) -> bytes | None:
        """The value of a header by its lower-case name; values of a repeated one joined by `, `."""
        return self.fields.get(name)


HeadT = TypeVar("HeadT", bound=Head)


def parse_head(raw: bytes, most_fields: int, kind: type[HeadT]) -> HeadT:
    """Read a request's head, from its first byte to its empty line.

    most_fields: the limit on header fields.
    kind: the class to make.

    Raises:
        InvalidFraming, InvalidHost, BadRequest: 400; HeadersTooLarge: 431; MethodNotAllowed: 405.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _bad_request_line(raw)
    start, end = line.end(), len(raw) - 2
    found = _FIELD.findall(raw, start, end)
    # Every byte between the request line and the empty line must belong to a field that matched.
    if sum([len(name) + len(value) for name, value in found]) + 3 * len(found) != end - start:
        raise InvalidFraming("a header line is not `name: value`, ended by CR LF")
    if len(found) > most_fields:
        raise HeadersTooLarge(f"{len(found)} header fields; the limit is {most_fields}")
    method, target, minor = line.groups()
    if _BAD_TARGET.search(target) is not None:
        _check_target(target)
    headers = [(name.lower(), value.strip()) for name, value in found]
    head = kind(method.decode(), target, minor[0] - 48, headers)
    if len(head.fields) != len(headers):
        _join_repeated(head)
    _check_fields(head)
    return head


def check_partial_head(part: bytes) -> None:
    """Refuse the beginning of a head that no continuation can make valid, without waiting.

    Raises:
        InvalidFraming
    """
    if _BAD_PARTIAL.search(part) is not None or _BEGINNING.match(part) is None:
        raise InvalidFraming("this is not the beginning of an HTTP/1.1 request")


def head_too_large(line_end: int, length: int, limits: HttpLimits) -> HostlerError | None:
    """Say which limit a head breaks that is `length` bytes long or longer, if any.

    line_end: where its request line ends; -1 when that is not known yet.
    """
    line = length if line_end < 0 else line_end
    if line > limits.target_bytes + _LINE_OVERHEAD:
        return URITooLong(f"the request target is over the limit of {limits.target_bytes} bytes")
    if length > limits.header_bytes:
        return HeadersTooLarge(f"the head is over the limit of {limits.header_bytes} bytes")
    return None


def check_declared_body(head: Head, body_bytes: int) -> HostlerError | None:
    """Refuse a body by what its head says: too long, or compressed."""
    if head.content_length is not None and head.content_length > body_bytes:
        return RequestTooLarge(
            f"the body has {head.content_length} bytes; the limit is {body_bytes}"
        )
    if head.fields.get(b"content-encoding", b"identity").lower() != b"identity":
        return UnsupportedMediaType()
    return None


class ChunkedBody:
    """A chunked request body, decoded strictly: no extensions, no trailer fields, CR LF everywhere.

    Clients of this API use neither extensions nor trailers, and both are where parsers disagree.
    """

    __slots__ = ("_body", "_left", "_limit", "_pending", "_state", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = bytearray()
        self._pending = b""
        self._left = 0
        self._state = _SIZE
        self.size = 0  # decoded bytes so far

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes. Returns what follows the body once it is complete, else None.

        Raises:
            InvalidFraming, RequestTooLarge
        """
        data = self._pending + data if self._pending else data
        at, length = 0, len(data)
        while True:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                self._body += piece
                self._left -= len(piece)
                at += len(piece)
                if self._left:
                    self._pending = b""
                    return None
                self._state = _DATA_END
            if self._state in (_DATA_END, _LAST):
                ending = data[at : at + 2]
                if ending != b"\r\n":
                    if b"\r\n".startswith(ending):
                        self._pending = ending
                        return None
                    raise InvalidFraming("a chunk does not end with CR LF")
                at += 2
                if self._state == _LAST:
                    return data[at:]
                self._state = _SIZE
            line = _CHUNK_LINE.match(data, at)
            if line is None:
                rest = data[at : at + 20]
                if length - at < 20 and _CHUNK_LINE_PART.match(rest) is not None:
                    self._pending = rest
                    return None
                raise InvalidFraming("a chunk's size line is not hexadecimal digits and CR LF")
            at = line.end()
            self._left = int(line[1], 16)
            self.size += self._left
            if self.size > self._limit:
                raise RequestTooLarge(f"the body is over the limit of {self._limit} bytes")
            self._state = _DATA if self._left else _LAST

    def body(self) -> bytes:
        return bytes(self._body)


def field_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return header lines.

    Raises:
        ValueError: a name or value holds CR, LF or NUL (F96).
    """
    lines = b"".join([b"%b: %b\r\n" % field for field in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
        raise ValueError("a header name or value holds CR, LF or NUL")
    return lines


def build_request(
    method: str, path: str, host: str, headers: Sequence[tuple[bytes, bytes]], body: bytes = b""
) -> bytes:
    """Return a whole request, newly built: framing is ours and never copied from a client's.

    headers: without host, content-length, transfer-encoding and connection.

    Raises:
        ValueError: a part holds white space or a control where none may be.
    """
    line = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n".encode("ascii")
    if line.count(b"\n") != 2 or line.count(b"\r") != 2 or line.count(b" ") != 3:
        raise ValueError("method, path or host holds white space or a control")
    if not body and method in ("GET", "HEAD", "DELETE"):
        return b"%b%b\r\n" % (line, field_lines(headers))
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (line, field_lines(headers), len(body), body)


# Private

_LINE_OVERHEAD = 32  # method, two spaces, version, CR LF

# Each pattern reads every byte once: its parts cannot match in two ways.
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]++) HTTP/1\.([01])\r\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([\t\x20-\x7e\x80-\xff]*+)\r\n")
_BEGINNING = re.compile(rb"[A-Z]{1,16}(?:\Z| )")
_BAD_PARTIAL = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BAD_TARGET = re.compile(
    rb"\A[^/]|\A[^?]*(?://|/\.{1,2}(?:[/?]|\Z))|[\\#]|%(?![0-9A-Fa-f]{2})"
    rb"|\A[^?]*%(?:2[EeFf]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])"
)
_HOST = re.compile(
    rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_CHUNK_LINE_PART = re.compile(rb"[0-9A-Fa-f]{0,8}(?<=[0-9A-Fa-f])\r?\Z|\Z")
_REFUSED_METHODS = ("CONNECT", "TRACE", "TRACK")
# A list of values means nothing for these: a second one is an attempt to be read in two ways.
_SINGLE = (
    b"content-length",
    b"transfer-encoding",
    b"authorization",
    b"content-type",
    b"content-encoding",
    b"expect",
)
_SIZE, _DATA, _DATA_END, _LAST = range(4)


def _bad_request_line(raw: bytes) -> HostlerError:
    if raw.startswith(b"PRI * HTTP/2.0"):
        return InvalidFraming("HTTP/2 is not spoken here; use HTTP/1.1")
    return InvalidFraming("the request line is not `METHOD /target HTTP/1.1`")


def _check_target(target: bytes) -> None:
    raise BadRequest(
        "the request target must be a plain absolute path: no scheme or host, no empty or dot "
        "segment, no encoded slash, dot or control"
    )


def _join_repeated(head: Head) -> None:
    """Give `fields` the joined values of repeated headers; refuse those that may come once only."""
    joined: dict[bytes, bytes] = {}
    for name, value in head.headers:
        if name not in joined:
            joined[name] = value
        elif name == b"host":
            raise InvalidHost("more than one Host header")
        elif name in _SINGLE:
            raise InvalidFraming(f"more than one {name.decode()} header")
        else:
            joined[name] += b", " + value
    head.fields = joined


def _check_fields(head: Head) -> None:
    """Judge host, framing and connection headers."""
    fields = head.fields
    host = fields.get(b"host")
    if host is None or _HOST.fullmatch(host) is None:
        raise InvalidHost()
    if head.method in _REFUSED_METHODS:
        raise MethodNotAllowed()
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or head.version == 0 or coding.lower() != b"chunked":
            raise InvalidFraming(
                "transfer-encoding must be `chunked`, on HTTP/1.1, without content-length"
            )
        head.content_length = None
    elif length is not None:
        if _DIGITS.fullmatch(length) is None:
            raise InvalidFraming("content-length must be digits")
        head.content_length = int(length)
    connection = fields.get(b"connection")
    if connection is not None:
        options = [option.strip() for option in connection.lower().split(b",")]
        head.keep_alive = b"close" not in options and (
            head.version == 1 or b"keep-alive" in options
        )
    expect = fields.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise BadRequest("the only expectation met here is 100-continue")
        head.expects_continue = head.version == 1
