"""Answers as bytes: heads, chunks at every cut, and llhttp's opinion of the same bytes."""

from itertools import pairwise

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.wire.reply import BadReply, ChunkReader, Framing, read_head, whole_chunks
from tests.amounts import many

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def chunk(data: bytes, size: bytes | None = None) -> bytes:
    return (size or b"%x" % len(data)) + b"\r\n" + data + b"\r\n"


def read_all(data: bytes, cuts: list[int]) -> tuple[bytes, bool, bytes]:
    """The body, whether it is complete, and what follows."""
    reader, body, places = ChunkReader(), b"", [0, *sorted(cuts), len(data)]
    for start, end in pairwise(places):
        if reader.is_complete:
            return body, True, reader.rest + data[start:]
        body += reader.feed(data[start:end])
    return body, reader.is_complete, reader.rest


class Theirs:
    """llhttp reads a chunked answer."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.is_complete = False
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = True


@pytest.mark.parametrize(
    ("raw", "framing", "length", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", Framing.LENGTH, 12, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Framing.LENGTH, 0, True),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length:7 \r\nConnection: close\r\n\r\n",
            Framing.LENGTH,
            7,
            False,
        ),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n", Framing.LENGTH, 3, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing.CHUNKED, 0, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", Framing.CLOSE, 0, False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Framing.NONE, 0, True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", Framing.NONE, 9, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Framing.NONE, 0, True),
    ],
)
def test_a_head_says_where_its_body_ends(
    raw: bytes, framing: Framing, length: int, keep: bool
) -> None:
    head = read_head(raw, is_for_head=False)
    assert (head.framing, head.length, head.keep) == (framing, length, keep)
    assert b"content-length" not in dict(head.headers)
    if framing is Framing.LENGTH:
        assert head.before + b"%d" % length + head.after == raw
    else:
        assert (head.before, head.after) == (raw, b"")


def test_the_answer_to_a_head_has_no_body() -> None:
    head = read_head(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n", is_for_head=True)
    assert (head.framing, head.length, head.has_length) == (Framing.NONE, 12, True)


@pytest.mark.parametrize(
    "raw",
    [
        b"junk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname\r\n\r\n",
    ],
)
def test_F62_a_head_that_can_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    with pytest.raises(BadReply):
        read_head(raw, is_for_head=False)


def test_chunks_give_their_body_wherever_they_are_cut() -> None:
    data = chunk(b"abc") + chunk(b"x" * 20, b"14;name=value") + b"0\r\nTrailer: x\r\n\r\nHTTP/1.1"
    for first in range(len(data)):
        for second in range(first, len(data), 3):
            body, is_complete, rest = read_all(data, [first, second])
            assert (body, is_complete, rest) == (b"abc" + b"x" * 20, True, b"HTTP/1.1")


@pytest.mark.parametrize(
    "data",
    [b"g\r\n", b"-1\r\n", b"1_0\r\n", b"0x1\r\na", b"3\r\nabcd\r\n", b" 3\r\nabc\r\n", b"1" * 13],
)  # fmt: skip
def test_a_chunk_without_a_size_is_refused(data: bytes) -> None:
    with pytest.raises(BadReply):
        read_all(data, [])


PARTS = st.sampled_from(
    [chunk(b"abc"), chunk(EVENT), chunk(b"a" * 300), b"0\r\n\r\n", b"\r\n", b"3", b"a", b";x=y", b"\n", b"zz"]
)  # fmt: skip


@settings(max_examples=many(600), deadline=None)
@given(parts=st.lists(PARTS, max_size=6), cuts=st.lists(st.integers(0, 400), max_size=4))
def test_F59_llhttp_reads_the_same_body_or_both_refuse(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    try:
        theirs = Theirs(data)
    except httptools.HttpParserError:
        theirs = None
    try:
        body, is_complete, rest = read_all(data, [min(cut, len(data)) for cut in cuts])
    except BadReply:
        assert theirs is None or not theirs.is_complete  # sooner than llhttp at most
        return
    if theirs is not None and not rest:
        assert (body, is_complete) == (theirs.body, theirs.is_complete)


def test_whole_chunks_of_events_are_counted_and_nothing_else_is() -> None:
    one = len(chunk(EVENT))
    assert whole_chunks(chunk(EVENT)) == (1, one)
    assert whole_chunks(chunk(EVENT) * 3) == (3, 3 * one)
    assert whole_chunks(chunk(EVENT + EVENT)) == (1, len(chunk(EVENT + EVENT)))
    assert whole_chunks(chunk(EVENT) + b"1") == (1, one)
    assert whole_chunks(chunk(EVENT) * 2 + b"0\r\n\r\n") == (2, 2 * one)
    for data in (
        b"",
        chunk(EVENT)[:-1],
        chunk(EVENT[:-1]),
        b"0\r\n\r\n",
        chunk(EVENT, b"%x;a=b" % len(EVENT)),
        chunk(EVENT, b"0%x" % len(EVENT)),
        chunk(EVENT, b"%x" % (len(EVENT) - 2)),
        EVENT,
    ):
        assert whole_chunks(data) == (0, 0), data


@given(cuts=st.lists(st.integers(0, 300), max_size=3))
def test_what_is_counted_as_whole_is_what_a_reader_makes_of_it(cuts: list[int]) -> None:
    data = chunk(EVENT) * 2 + chunk(EVENT * 2) + chunk(EVENT)
    part = data[: min([*cuts, len(data)])]
    count, end = whole_chunks(part)
    reader = ChunkReader()
    assert reader.feed(part[:end]).count(b"\n\n") >= count
    assert reader.is_between
    rest = part[end:]
    reader.feed(rest)
    left = reader.chunk_left
    if left:
        assert data[end:][: len(rest) + left].endswith(b"\n\n\r\n")
