"""What HTTP/1.1 asks of a server, byte for byte: HEAD, Expect, chunks, pipelines, and what is ignored."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import HttpLimits
from hostler.core.errors import HostlerError, InvalidAPIKey
from hostler.gateway.routes import Auth, GatewayRoute, RouteTable
from hostler.wire.server import Exchange, Head
from tests.unit.wire.transport import Client

HOST = b"Host: localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PLAIN = (
    rb"HTTP/1\.1 200 OK\r\nx-request-id: [0-9a-f]+-[0-9]+\r\ncontent-length: %d\r\n"
    rb"content-type: text/plain\r\n\r\n%b"
)


def echo(exchange: Exchange) -> None:
    request = exchange.request
    body = request.method.encode() + b" " + request.body
    exchange.send(200, body, [(b"content-type", b"text/plain")])


def said(*pieces: bytes, limits: HttpLimits | None = None) -> bytes:
    """What the server writes; the date and other standing headers are left out of it."""
    client = Client(echo, limits=limits)
    client.server.common_headers = b""
    return client.feed(*pieces).transport.written


def told(body: bytes, *, bodiless: bool = False) -> re.Pattern[bytes]:
    return re.compile(PLAIN % (len(body), b"" if bodiless else re.escape(body)))


def test_head_is_get_without_the_body_and_the_next_answer_follows_at_once() -> None:
    written = said(GET.replace(b"GET", b"HEAD", 1) + GET)
    head = told(b"HEAD ", bodiless=True).match(written)
    assert head is not None
    assert told(b"GET ").fullmatch(written[head.end() :])


def test_five_requests_in_one_write_are_five_answers_in_order() -> None:
    post = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n%02d"
    written = said(b"".join(post % number for number in range(5)))
    for number in range(5):
        found = told(b"POST %02d" % number).match(written)
        assert found is not None
        written = written[found.end() :]
    assert written == b""


def test_a_client_that_expects_continue_is_told_so_before_it_sends() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert said(head) == CONTINUE
    written = said(head, b"ab")
    assert written.startswith(CONTINUE)
    assert told(b"POST ab").fullmatch(written[len(CONTINUE) :])
    assert told(b"POST ab").fullmatch(said(head + b"ab"))  # it did not wait: nothing to tell
    old = head.replace(b"HTTP/1.1", b"HTTP/1.0")
    assert said(old) == b""  # HTTP/1.0 knows no interim answers
    assert said(head.replace(b"100-continue", b"200-ok")).startswith(b"HTTP/1.1 400 ")
    chunked = head.replace(b"Content-Length: 2\r\n", CHUNKED)
    assert said(chunked) == CONTINUE


@pytest.mark.parametrize(
    "body",
    [
        b"2\r\nab\r\n0\r\n\r\n",
        b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        b"00000002\r\nab\r\n00\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_chunked_body_is_read_whole_in_any_pieces(body: bytes, step: int) -> None:
    data = b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n" + body + GET
    written = said(*[data[at : at + step] for at in range(0, len(data), step)])
    first = told(b"POST ab").match(written)
    assert first is not None
    assert told(b"GET ").fullmatch(written[first.end() :])


IGNORED = {
    "range": b"Range: bytes=0-1,2-3,4-5\r\n",
    "if-none-match": b"If-None-Match: *\r\n",
    "if-match": b'If-Match: "x"\r\n',
    "if-modified-since": b"If-Modified-Since: Sat, 01 Jan 2028 00:00:00 GMT\r\n",
    "if-range": b'If-Range: "x"\r\nRange: bytes=0-0\r\n',
    "method-override": b"X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "forwarded": b"X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1;host=evil\r\n",
    "te": b"TE: trailers, gzip\r\n",
}


@pytest.mark.parametrize("name", IGNORED)
def test_F97_what_asks_for_something_else_gets_the_plain_answer(name: str) -> None:
    assert told(b"GET ").fullmatch(said(GET[:-2] + IGNORED[name] + b"\r\n"))


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"TRACE / HTTP/1.1", b"405"),
        (b"TRACK / HTTP/1.1", b"405"),
        (b"CONNECT localhost:1 HTTP/1.1", b"400"),
        (b"PRI * HTTP/2.0", b"400"),
        (b"GET / HTTP/2.0", b"400"),
        (b"GET / HTTP/1.1 ", b"400"),
        (b"RTSP / RTSP/1.0", b"400"),
    ],
)
def test_F97_other_protocols_and_methods_for_proxies_are_refused(
    line: bytes, status: bytes
) -> None:
    assert said(line + b"\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 " + status)


def test_F97_methods_that_a_route_does_not_take_are_refused_with_those_it_does() -> None:
    def nothing(exchange: Exchange, key: object) -> None: ...

    table = RouteTable(
        [GatewayRoute(method="POST", path="/v1/x", handler=nothing, auth=Auth.INFERENCE)]
    )

    def judge(head: Head) -> HostlerError | None:
        try:
            table.find(head.method, head.path)
        except HostlerError as error:
            return error
        return None

    for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"PROPFIND", b"QUERY"):
        client = Client(on_head=judge).feed(method + b" /v1/x HTTP/1.1\r\n" + HOST + b"\r\n")
        assert client.transport.written.startswith(b"HTTP/1.1 405 "), method
        assert b"\r\nallow: POST\r\n" in client.transport.written


def test_F91_a_gigabyte_by_its_length_is_refused_before_a_byte_of_it() -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1073741824\r\n"
    for expect in (b"", b"Expect: 100-continue\r\n"):
        written = said(head + expect + b"\r\n")
        assert written.startswith(b"HTTP/1.1 413 ")
        assert CONTINUE not in written


def test_F91_chunks_without_end_are_cut_at_the_limit_and_hold_no_more_than_it() -> None:
    client = Client(echo)
    client.feed(b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n")
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    fed = 0
    while not client.has_ended:
        client.feed(piece)
        fed += 65536
        assert client.server.bodies_held <= 8 * 1024 * 1024 + 2 * len(piece)
        assert fed < 10_000_000
    assert client.transport.written.startswith(b"HTTP/1.1 413 ")
    assert client.server.bodies_held == 0


def test_F91_chunks_of_one_byte_are_counted_with_their_framing() -> None:
    limits = HttpLimits(all_bodies_bytes=100_000)
    client = Client(echo, limits=limits)
    client.feed(b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n")
    for _ in range(200):
        client.feed(b"1\r\nx\r\n" * 100)
    assert client.transport.written.startswith(b"HTTP/1.1 503 ")
    assert client.server.bodies_held == 0


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"br", b"deflate", b"identity, gzip", b"x"])
@pytest.mark.parametrize("framing", [b"Content-Length: 3\r\n", CHUNKED])
def test_F91_a_body_that_is_packed_is_refused(coding: bytes, framing: bytes) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST + framing + b"Content-Encoding: " + coding + b"\r\n\r\n"
    assert said(head).startswith(b"HTTP/1.1 415 ")


HEADERS = re.compile(rb"(?:[a-z0-9-]+: [\x20-\x7e]*\r\n)+")


@settings(max_examples=400, deadline=None)
@given(
    given_id=st.binary(max_size=80),
    value=st.binary(max_size=60),
    path=st.binary(max_size=40),
    refuse=st.booleans(),
)
def test_F96_no_byte_of_a_request_makes_a_line_of_an_answer(
    given_id: bytes, value: bytes, path: bytes, refuse: bool
) -> None:
    client = Client(echo, on_head=lambda head: InvalidAPIKey() if refuse else None)
    client.server.common_headers = b""
    client.feed(
        b"GET /" + path + b" HTTP/1.1\r\n" + HOST + b"X: " + value + b"\r\n"
        b"X-Request-Id: " + given_id + b"\r\n\r\n"
    )
    written = client.transport.written
    while written:
        status, _, written = written.partition(b"\r\n")
        assert re.fullmatch(rb"HTTP/1\.1 [2-5][0-9]{2} [A-Za-z ]+", status)
        fields = HEADERS.match(written)
        assert fields is not None
        found = re.search(rb"^x-request-id: (.*)\r$", fields[0], re.MULTILINE)
        assert found is not None
        assert re.fullmatch(rb"[A-Za-z0-9_-]{1,64}", found[1])
        length = re.search(rb"content-length: ([0-9]+)\r", fields[0])
        assert length is not None
        written = written[fields.end() :]
        assert written.startswith(b"\r\n")
        written = written[2 + int(length[1]) :]
