"""A head that comes again is the same request as if it had been read; one that differs is read."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import HttpLimits
from hostler.core.errors import HostlerError
from hostler.wire.exchange import Request
from hostler.wire.heads import HeadReader
from hostler.wire.http1 import parse_head

LIMITS = HttpLimits()
START = b"POST /v1/chat?a=b HTTP/1.1\r\nHost: a\r\n"
PARTS = st.sampled_from([
    b"Content-Length: 5\r\n", b"content-length:7\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 12345\r\n",
    b"Content-Length: 5 \r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n",
    b"X: y\r\n", b"X: z\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"x-request-id: r\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"X: Content-Length: 5\r\n", b"Content-Length: 123456789012345678901\r\n",
])  # fmt: skip
HEADS = st.lists(PARTS, max_size=3).map(lambda parts: START + b"".join(parts) + b"\r\n")


def facts(request: Request) -> tuple[object, ...]:
    return (
        request.method,
        request.target,
        request.path,
        request.query,
        request.version,
        sorted(request.headers),
        request.fields,
        request.content_length,
        request.keep_alive,
        request.expects_continue,
        request.body,
    )


@settings(max_examples=500, deadline=None)
@given(
    heads=st.lists(st.tuples(HEADS, st.booleans()), min_size=2, max_size=5),
    rest=st.sampled_from([b"", b"abc", b"\r\n"]),
)
def test_F88_heads_in_a_row_are_read_as_each_alone_would_be(
    heads: list[tuple[bytes, bool]], rest: bytes
) -> None:
    """Some of them are refused by whoever judges them, on a connection that goes on."""
    reader = HeadReader()
    for raw, is_good in heads:
        try:
            alone = parse_head(raw, LIMITS.header_fields, Request)
        except HostlerError as error:
            wanted: object = type(error)
        else:
            wanted = (facts(alone), len(raw))
        try:
            found = reader.read(raw + rest, LIMITS)
        except HostlerError as error:
            got: object = type(error)
        else:
            assert found is not None
            got = (facts(found[0]), found[1])
            if is_good:
                reader.accept(found[0])
        assert got == wanted


def test_what_was_judged_is_known_of_the_next_equal_head() -> None:
    reader = HeadReader()
    found = reader.read(START + b"Content-Length: 5\r\n\r\nabcde", LIMITS)
    assert found is not None
    found[0].judged = "good"
    reader.accept(found[0])
    again = reader.read(START + b"Content-Length: 10\r\n\r\n", LIMITS)
    other = reader.read(START + b"Content-Length: 10\r\nX: y\r\n\r\n", LIMITS)
    assert again is not None
    assert other is not None
    assert (again[0].judged, other[0].judged) == ("good", None)
    assert again[0].content_length == 10
    assert reader.read(START + b"Content-Length: 1", LIMITS) is None


def test_a_head_that_was_not_accepted_is_not_known() -> None:
    reader = HeadReader()
    raw = START + b"Content-Length: 5\r\n\r\n"
    first = reader.read(raw, LIMITS)
    assert first is not None
    first[0].judged = "refused"
    again = reader.read(raw, LIMITS)
    assert again is not None
    assert again[0].judged is None


def test_a_head_that_was_refused_is_never_taken_for_the_one_that_came_after_it() -> None:
    reader = HeadReader()
    good = START + b"Authorization: good\r\nContent-Length: 5\r\n\r\n"
    bad = START + b"Authorization: bad\r\nContent-Length: 5\r\n\r\n"

    def read(raw: bytes) -> Request:
        found = reader.read(raw, LIMITS)
        assert found is not None
        return found[0]

    first = read(good)
    first.judged = "good"
    reader.accept(first)
    assert read(bad).judged is None  # refused: not accepted, and its connection may go on
    again = read(good)
    assert again.judged == "good"
    reader.accept(again)
    stranger = read(bad)
    assert (stranger.judged, stranger.fields[b"authorization"]) == (None, b"bad")
