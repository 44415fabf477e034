"""F88: what two programs could read in two ways is refused, and nothing after it is answered."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.wire.server import Exchange
from tests.amounts import many
from tests.unit.wire.reference import Outcome, outcomes
from tests.unit.wire.transport import Client

H = b"Host: localhost\r\n"
NEXT = b"GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST /v1/x HTTP/" + version + b"\r\n" + H + fields + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"
VECTORS = {
    "cl-te": post(b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n"),
    "te-cl": post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"),
    "cl-cl-same": post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"),
    "cl-cl-other": post(b"Content-Length: 3\r\nContent-Length: 0\r\n", b"abc"),
    "cl-list": post(b"Content-Length: 3, 3\r\n", b"abc"),
    "cl-plus": post(b"Content-Length: +3\r\n", b"abc"),
    "cl-minus": post(b"Content-Length: -3\r\n", b"abc"),
    "cl-hex": post(b"Content-Length: 0x3\r\n", b"abc"),
    "cl-underscore": post(b"Content-Length: 0_3\r\n", b"abc"),
    "cl-empty": post(b"Content-Length:\r\n", b"abc"),
    "cl-space-inside": post(b"Content-Length: 1 3\r\n", b"abc"),
    "cl-float": post(b"Content-Length: 3.0\r\n", b"abc"),
    "cl-arabic-digit": post("Content-Length: ٣\r\n".encode(), b"abc"),
    "cl-long": post(b"Content-Length: " + b"9" * 30 + b"\r\n", b"abc"),
    "te-identity": post(b"Transfer-Encoding: identity\r\n"),
    "te-gzip-chunked": post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "te-chunked-chunked": post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "te-twice": post(CHUNKED + CHUNKED, b"0\r\n\r\n"),
    "te-xchunked": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "te-vertical-tab": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "te-parameter": post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"),
    "te-quoted": post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "te-http10": post(CHUNKED, b"0\r\n\r\n", b"1.0"),
    "te-space-before-colon": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    "te-folded": post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "chunk-size-hex-prefix": post(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-plus": post(CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-minus": post(CHUNKED, b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-space": post(CHUNKED, b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk-size-long": post(CHUNKED, b"000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-overflow": post(CHUNKED, b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-lf": post(CHUNKED, b"3\nabc\r\n0\r\n\r\n"),
    "chunk-data-too-long": post(CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk-data-lf": post(CHUNKED, b"3\r\nabc\n0\r\n\r\n"),
    "chunk-data-no-end": post(CHUNKED, b"3\r\nabc0\r\n\r\n"),
    "chunk-extension": post(CHUNKED, b"3;a=b\r\nabc\r\n0\r\n\r\n"),
    "chunk-extension-lf": post(CHUNKED, b"3;a\nx\r\nabc\r\n0\r\n\r\n"),
    "chunk-trailer": post(CHUNKED, b"0\r\nX: y\r\n\r\n"),
    "chunk-last-lf": post(CHUNKED, b"0\r\n\n"),
    "bare-lf-head": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "bare-lf-field": b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "bare-cr-field": b"GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "bare-lf-end": b"GET / HTTP/1.1\r\nHost: localhost\r\n\n",
    "obs-fold": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    "fold-first": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "nul-value": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "nul-name": b"GET / HTTP/1.1\r\nHost: localhost\r\nX\0: a\r\n\r\n",
    "name-space": b"GET / HTTP/1.1\r\nHost: localhost\r\nX y: a\r\n\r\n",
    "name-empty": b"GET / HTTP/1.1\r\nHost: localhost\r\n: a\r\n\r\n",
    "no-colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
    "line-two-spaces": b"GET  / HTTP/1.1\r\n" + H + b"\r\n",
    "line-tab": b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n",
    "line-extra": b"GET / x HTTP/1.1\r\n" + H + b"\r\n",
    "line-lower": b"get / HTTP/1.1\r\n" + H + b"\r\n",
    "version-1.2": b"GET / HTTP/1.2\r\n" + H + b"\r\n",
    "version-11": b"GET / HTTP/11\r\n" + H + b"\r\n",
    "version-0.9": b"GET /\r\n\r\n",
    "empty-line-first": b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n",
    "http2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls-hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("step", [1, 7, 100_000], ids=["bytewise", "by-seven", "at-once"])
def test_F88_a_request_with_two_readings_is_refused_and_nothing_follows(
    name: str, step: int
) -> None:
    data = VECTORS[name] + NEXT
    client = Client().feed(*[data[at : at + step] for at in range(0, len(data), step)])
    [(status, headers, body)] = client.answers()
    assert (status, headers["connection"]) == (400, "close")
    assert b'"code":"invalid_framing"' in body
    assert client.has_ended


def test_F88_a_late_chunk_error_ends_the_request_without_its_handler() -> None:
    seen: list[str] = []
    client = Client(lambda exchange: seen.append(exchange.request.path))
    client.feed(post(CHUNKED, b"3\r\nabc\r\n"), b"zz\r\n")
    assert client.statuses() == [400]
    assert seen == []


def test_F88_wellformed_requests_are_answered_in_order() -> None:
    data = (
        post(b"Content-Length: 3\r\n", b"abc")
        + post(CHUNKED, b"3\r\nabc\r\n1e\r\n" + b"x" * 30 + b"\r\n0\r\n\r\n")
        + post(b"transfer-encoding:CHUNKED\t \r\n", b"00\r\n\r\n")
        + NEXT
    )
    for step in (1, 2, 3, 50, len(data)):
        client = Client().feed(*[data[at : at + step] for at in range(0, len(data), step)])
        assert client.statuses() == [200] * 4
        assert not client.has_ended


GOOD = [
    NEXT,
    post(b"Content-Length: 11\r\n", b"hello world"),
    post(b"Content-Length: 40\r\n", NEXT),
    post(CHUNKED, b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
    post(CHUNKED, b"28\r\n" + NEXT + b"\r\n0\r\n\r\n"),
    b"GET /a?b=c HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    b"HEAD /x HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
]
SPLICES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"1", b"a", b"%", b"/", b"//", b"..",
    b"%2e", b"\r\n ", b"\r\n\r\n", b"0\r\n\r\n", b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", CHUNKED,
    b"Transfer-Encoding: x\r\n", H, b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0",
    b"\xff", b"\x0b", b"\x7f", b"chunked",
    b"+", b"-", b";a=b", b"X: y\r\n", b"[", b"]", b"#", b"*", b"http://a", NEXT,
]  # fmt: skip


FIELDS = st.sampled_from([
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Content-Length : 3\r\n", CHUNKED, CHUNKED, H,
    b"Transfer-Encoding: identity\r\n", b"X: y\r\n", b"\tX: y\r\n", b"X: y\n", b"Connection: close\r\n",
])  # fmt: skip
BODIES = st.sampled_from([
    b"", b"abc", b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"3;x=y\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n",
    b"3\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\nX: y\r\n\r\n", NEXT,
])  # fmt: skip
MADE = st.builds(
    lambda fields, body: post(b"".join(fields), body), st.lists(FIELDS, max_size=2), BODIES
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = b"".join(draw(st.lists(st.sampled_from(GOOD) | MADE, min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        edges = [found.start() for found in re.finditer(rb"\r\n|(?<=\r\n)|[ :]", data)]
        at = draw(st.sampled_from(edges or [0]) | st.integers(0, len(data)))
        removed = draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
        data = data[:at] + draw(st.sampled_from(SPLICES) | st.just(b"")) + data[at + removed :]
    return data


@settings(max_examples=many(4000), deadline=None)
@given(data=mutated(), cuts=st.lists(st.integers(0, 400), max_size=4))
def test_F88_mutations_get_as_many_answers_as_a_strict_reader_sees_requests(
    data: bytes, cuts: list[int]
) -> None:
    expected = outcomes(data)
    served = expected.count(Outcome.SERVED)
    places = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    handled: list[str] = []

    def handle(exchange: Exchange) -> None:
        handled.append(exchange.request.path)
        exchange.send(200, b"")

    client = Client(handle)
    client.feed(*[data[a:b] for a, b in pairwise(places)])
    statuses = [status for status in client.statuses() if status != 100]
    assert len(handled) == served
    assert statuses[:served] == [200] * served
    extra = statuses[served:]
    assert all(400 <= status < 500 for status in extra)
    if Outcome.REFUSED in expected:
        assert len(extra) == 1
    elif Outcome.UNFINISHED in expected:
        assert len(extra) <= 1  # what can never become a request may be refused early
    else:
        assert extra == []
    if extra:
        assert client.has_ended
