"""StreamWatch: what of an engine's events a client gets."""

from hypothesis import given
from hypothesis import strategies as st

from hostler.gateway.streams import StreamWatch

ENDS = b"".join(
    b'data: {"choices":[{"index":%d,"text":"","finish_reason":"stop"}]}\n\n' % n for n in range(2)
)


def test_the_nulls_of_a_stream_of_several_answers_are_left_out() -> None:
    watch = StreamWatch(2)
    assert watch.see(b"data: null\n\n") == b""
    events = b'data: {"choices":[{"index":0,"text":"data: null","finish_reason":null}]}\n\n'
    assert watch.see(b"data: null\n\n" + events) == events
    ends_so = b"id: 1\ndata: null\n\n"  # the last line of an event is no event
    assert watch.see(ends_so + events) == ends_so + events
    assert watch.see(ENDS + b"data: [DONE]\n\n") == ENDS + b"data: [DONE]\n\n"
    assert watch.is_complete


def test_a_done_before_every_answer_has_ended_is_held_back() -> None:
    watch = StreamWatch(3)
    assert watch.see(ENDS + b"data: [DONE]\n\n") == ENDS
    assert not watch.is_complete


TEXTS = st.sampled_from([
    b"a", b" horse", b'\\"', b"[DONE]", b"\\\\", b"", b"error", b"total_tokens", b"x" * 80, b'reason\\":\\"',
    b"y\n\ndata: [DONE]\n\ndata: z", b'","finish_reason":"stop","x":"', b'","error":{"code":1},"x":"',
    b'","usage":{"prompt_tokens":1,"total_tokens":3},"x":"', b'"}}],"error":{},"x":[{"a":{"b":"',
])  # fmt: skip
SHAPES = st.sampled_from([
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","choices": [{"delta": {"content": "%b"}, "index": 0, "finish_reason": null}]}\n\n',
    b'data: {"choices":[{"index":0,"text":"%b","finish_reason":null}],"created":1}\n\n',
])  # fmt: skip
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def follow(watch: StreamWatch, frames: list[list[bytes]]) -> tuple[object, ...]:
    """Pass on what came as `Attempt` does; what a client gets of it, and what is known at its end."""
    said = b""
    for chunks in frames:
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        if watch.is_plain(framed):
            watch.events += len(chunks)
            said += b"".join(chunks)
        else:
            said += watch.see(b"".join(chunks))
    used = watch.told()
    tokens = None if used is None else (used.prompt, used.completion)
    return said, watch.events, watch.is_complete, watch.is_failed, tokens


@given(SHAPES, SHAPES, st.lists(st.lists(TEXTS, min_size=1, max_size=2)), st.booleans())
def test_frames_that_are_like_the_one_before_are_judged_as_by_a_search_for_every_mark(
    shape: bytes, other: bytes, texts: list[list[bytes]], hides_usage: bool
) -> None:
    frames = [[shape % b"one"]] * 2
    frames += [[shape % one[0], *(other % text for text in one[1:])] for one in texts] + [[END]]
    searching = StreamWatch(1, hides_usage=hides_usage)
    searching._misses = 99  # it learns nothing
    assert follow(StreamWatch(1, hides_usage=hides_usage), frames) == follow(searching, frames)


def test_a_frame_like_the_one_before_is_not_searched() -> None:
    watch = StreamWatch(1)
    shape = b'data: {"choices":[{"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
    follow(watch, [[shape % b"one"]] * 3)
    assert watch._is_like_last(b"%x\r\n%b\r\n" % (200, shape % b" two"))
    for other in (b'\\"', b"\n", b"x" * 65, b""):
        assert not watch._is_like_last(b"%x\r\n%b\r\n" % (200, shape % other))
