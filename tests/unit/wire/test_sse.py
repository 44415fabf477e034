"""F59: the cutting of event streams, against a reading of the whole stream at once."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.core.errors import Overloaded, UpstreamError
from hostler.wire.sse import (
    EventCutter,
    SseEvent,
    data_event,
    error_event,
    parse_event,
    split_events,
)
from tests.amounts import many


def oracle(stream: bytes) -> list[SseEvent]:
    """Read a whole stream, line by line, as the standard's algorithm says."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, name, data = [], b"", None
    for line in text.split(b"\n")[:-1]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data is not None:
                events.append(SseEvent(name.decode("utf-8", "replace"), data))
            name, data = b"", None
        elif field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            name = value
    return events


def cut(pieces: list[bytes]) -> list[SseEvent]:
    cutter = EventCutter()
    found = []
    for piece in pieces:
        whole = cutter.feed(piece)
        found += [read for event in split_events(whole) if (read := parse_event(event))]
    return found


CHUNK = b'data: {"id":"x","choices":[{"delta":{"content":"h\xc3\xa9"}}]}'
STREAMS = [
    (CHUNK + b"\n\n") * 3 + b"data: [DONE]\n\n",
    (CHUNK + b"\r\n\r\n") * 2 + b"data: [DONE]\r\n\r\n",
    (CHUNK + b"\r\r") * 2 + b"data: [DONE]\r\r",
    b"\xef\xbb\xbfdata: a\n\ndata: b\n\n",
    b": ping\n\ndata: a\n\n: ping\n\n",
    b"event: error\ndata: a\ndata: b\ndata:\n\nid: 7\n\n",
    b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\rdata: d\n\rdata: e\r\r\n",
    b"\n\n\r\n\r\rdata: x\n\n\n\n\ndata: y\n\n",
    b"event: content_block_delta\r\ndata: {}\r\n\r\nevent: message_stop\r\ndata: {}\r\n\r\n",
    b"data\n\ndata:\n\ndata: \n\n:\n\nretry: 5\n\ndata:x\n\n",
    b"data: unfinished\n\ndata: par",
    b"data: \xff\xfe\n\nevent: \xff\ndata: z\n\n",
]  # fmt: skip


@pytest.mark.parametrize("stream", STREAMS, ids=range(len(STREAMS)))
def test_F59_every_split_in_three_gives_the_same_events(stream: bytes) -> None:
    expected = oracle(stream)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            assert cut([stream[:first], stream[first:second], stream[second:]]) == expected
    assert cut([bytes([byte]) for byte in stream]) == expected


lines = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b": c",
        b"event: e",
        b"id: 1",
        b"",
        b"\xef\xbb\xbf",
        b"data: \xc3\xa9",
    ]
)
streams = st.lists(
    st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\r"])).map(b"".join), max_size=25
).map(b"".join)


@settings(max_examples=many(3000), deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_F59_random_splits_give_the_same_events_and_lose_no_byte(
    stream: bytes, cuts: list[int]
) -> None:
    places = [0, *sorted(min(place, len(stream)) for place in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(places)]
    assert cut(pieces) == oracle(stream)
    cutter = EventCutter()
    out = b"".join(cutter.feed(piece) for piece in pieces)
    assert stream.startswith(out)
    assert cutter.has_partial == (len(out) < len(stream))


def test_F59_a_whole_event_passes_without_a_copy() -> None:
    cutter = EventCutter()
    assert cutter.feed(chunk := CHUNK + b"\n\n") is chunk


def test_F59_an_event_of_a_megabyte_passes_in_small_pieces_and_a_longer_one_does_not() -> None:
    event = b"data: " + b"x" * 1_000_000 + b"\n\n"
    cutter = EventCutter()
    out = b"".join(cutter.feed(event[at : at + 100]) for at in range(0, len(event), 100))
    assert out == event
    with pytest.raises(UpstreamError):
        EventCutter().feed(b"data: " + b"x" * 1_100_000)
    with pytest.raises(UpstreamError):
        EventCutter(most_bytes=10).feed(b"data: a\n\ndata: bcdefghijkl")


def test_events_made_here_are_read_back() -> None:
    for payload in (b'{"a":1}', b"two\nlines", b"cr\rlf\r\n", b""):
        read = parse_event(data_event(payload))
        assert read is not None
        assert read.data == payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    error = parse_event(error_event(Overloaded()))
    assert error is not None
    assert b'"code":"overloaded"' in error.data
